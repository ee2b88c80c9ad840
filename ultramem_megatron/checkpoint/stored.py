"""What lies in a checkpoint's files, read piece by piece on one process, without ranks, a model or torch.

The format is that of torch.distributed.checkpoint: ``.metadata`` says which rectangle of which tensor lies where, and
each rectangle is what ``torch.save`` wrote, a zip archive whose one stored entry is the data. Both are pickles; they
are read with unpicklers that know a handful of plain names and run nothing (``torch_pickle.py``).
"""

import io
import math
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_megatron.checkpoint.archive import open_archive, pickle_in
from ultramem_megatron.checkpoint.digest import Bits
from ultramem_megatron.checkpoint.names import shown, why_not_inside
from ultramem_megatron.checkpoint.torch_pickle import DCP, Stand, Unpickler, place_of, sizes_of
from ultramem_megatron.errors import CheckpointError

METADATA = ".metadata"
TABLE_SUFFIX = ".table.weight"

_METADATA_NAMES = {
    DCP: {
        *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata"),
        *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"},
    "torch.serialization": {"_get_layout"},
    # up to Python 3.11.3 a member of an enum is getattr(class, name); here it stands for itself and gets nothing
    "builtins": {"getattr"},
}

STORAGE_CLASSES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
"""What ``torch.save`` calls the storage of a tensor, by the name of its dtype."""

ITEM_BITS: dict[str, type[np.unsignedinteger[Any]]] = {
    **dict.fromkeys(("float64", "int64"), np.uint64),
    **dict.fromkeys(("float32", "int32"), np.uint32),
    **dict.fromkeys(("float16", "bfloat16", "int16"), np.uint16),
    **dict.fromkeys(("int8", "uint8", "bool"), np.uint8),
}


def item_bytes(dtype: str) -> int:
    """Size of an element.

    Args:
        dtype: As torch calls it, without ``torch.``; one of ``STORAGE_CLASSES``.
    """
    return np.dtype(ITEM_BITS[dtype]).itemsize


@dataclass(frozen=True, slots=True)
class Record:
    """Consecutive bytes of a file."""

    file: Path
    start: int
    length: int
    info: Stand = field(repr=False)
    """As ``.metadata`` has it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A rectangle of a logical tensor, and the record that holds it."""

    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    record: Record


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A logical tensor and the rectangles that it was cut into."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As torch calls it, without ``torch.``."""
    chunks: tuple[Chunk, ...]

    @property
    def num_bytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * item_bytes(self.dtype)

    @property
    def is_table(self) -> bool:
        """A value or pre-value table, or the optimizer's state of one."""
        return self.name.endswith(TABLE_SUFFIX) and len(self.shape) == 2

    @property
    def is_whole(self) -> bool:
        """Its rectangles have as many elements as it has."""
        return sum(math.prod(chunk.sizes) for chunk in self.chunks) == math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Stored:
    """All that the files of a checkpoint hold, but for ``common.pt``."""

    tensors: dict[str, StoredTensor]
    objects: dict[str, Record]
    """Bytes that megatron-core keeps for modules; not looked into."""
    metadata: Stand
    """The whole list, as ``.metadata`` has it."""

    @property
    def records(self) -> list[Record]:
        """Of all."""
        return [chunk.record for tensor in self.tensors.values() for chunk in tensor.chunks] + [*self.objects.values()]


def read_stored(folder: Path) -> Stored:
    """The list of what a checkpoint holds.

    Raises:
        CheckpointError: ``.metadata`` cannot be read, or is not a plain list.
    """
    try:
        with (folder / METADATA).open("rb") as stream:
            metadata = Unpickler(stream, _is_of_a_list, "list of tensors", {}).load()
        if not isinstance(metadata, Stand) or type(metadata).__name__ != "Metadata":
            raise ValueError("it is no list of tensors")
        size_of = cache(partial(_size_of, folder))
        records = {place_of(index): _record(folder, info, size_of) for index, info in metadata.storage_data.items()}
        tensors, objects = {}, {}
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(name, str) or not name.isprintable():
                raise ValueError(f"{shown(name)} is no name of a tensor")
            if type(entry).__name__ == "TensorStorageMetadata":
                tensors[name] = _stored_tensor(name, entry, records)
            else:
                objects[name] = records[name, None]
    except Exception as error:  # whatever a damaged pickle does
        raise CheckpointError(
            f"checkpoint {folder}: {METADATA} cannot be read ({reason_of(error)}); restore it"
        ) from None
    return Stored(tensors, objects, metadata)


def reason_of(error: Exception) -> str:
    """What is wrong with a file, from what its reading raised."""
    text = str(error).partition("\n")[0]
    return shown(text, 300) if text else type(error).__name__


def unpickle_plain(pickled: bytes, what: str) -> Any:
    """Numbers, texts, lists of them, types of elements; of a tensor, the arguments that torch would rebuild it from.

    Raises:
        pickle.UnpicklingError: It names anything else; and whatever a damaged pickle does.
    """
    return Unpickler(io.BytesIO(pickled), _is_plain, what, _REBUILD).load()


def _is_plain(module: str, name: str) -> bool:
    of_tensors = module in ("torch", "torch.storage") and name.endswith("Storage")
    return of_tensors or (module == "torch" and name in ITEM_BITS)


_REBUILD = {
    ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: arguments,
    ("collections", "OrderedDict"): OrderedDict,
}


class ChunkReader:
    """Reads rows of one chunk. A row is an index of its first axis that is longer than 1."""

    def __init__(self, chunk: Chunk, dtype: str) -> None:
        """
        Raises:
            CheckpointError: The record does not hold what ``.metadata`` says.
        """
        self.chunk, self.dtype = chunk, dtype
        sizes = chunk.sizes
        self.axis = next((axis for axis, size in enumerate(sizes) if size != 1), max(len(sizes) - 1, 0))
        self.rows = sizes[self.axis] if sizes else 1
        self.row_elements = math.prod(sizes) // self.rows if self.rows else 0
        try:
            self.data_start = _data_start(chunk, dtype)
        except Exception as error:  # whatever a damaged pickle or archive does
            reason = reason_of(error)
            raise CheckpointError(f"{chunk.record.file}: a tensor's record cannot be read ({reason})") from None

    def read(self, start: int, stop: int) -> Bits:
        """Rows ``start`` to ``stop`` (excluded), with as many dimensions as the chunk."""
        sizes = list(self.chunk.sizes)
        if sizes:
            sizes[self.axis] = stop - start
        part = new_bits(sizes, self.dtype)
        self.read_into(part, start)
        return part

    def read_into(self, part: Bits, start: int) -> None:
        """Fill ``part``, which is contiguous, with the rows from ``start`` on."""
        if not part.size:
            return
        content: Any = part.reshape(-1).view(np.uint8)
        with self.chunk.record.file.open("rb") as stream:
            stream.seek(self.data_start + start * self.row_elements * part.itemsize)
            filled = stream.readinto(content)
        if filled != part.nbytes:
            raise CheckpointError(f"{self.chunk.record.file} ends within a tensor")


def new_bits(sizes: tuple[int, ...] | list[int], dtype: str) -> Bits:
    """Room for elements, whose bits alone matter."""
    return np.empty(sizes, ITEM_BITS[dtype])


def _is_of_a_list(module: str, name: str) -> bool:
    return name in _METADATA_NAMES.get(module, ()) or (module == "torch" and (name == "Size" or name in ITEM_BITS))


def _data_start(chunk: Chunk, dtype: str) -> int:
    """Where in the file the elements begin, in row-major order."""
    record, elements = chunk.record, math.prod(chunk.sizes)
    with open_archive(record.file, record.start, record.length) as archive:
        root, pickled = pickle_in(archive)
        (_, storage, key, *_), first, shape, stride, *_ = unpickle_plain(pickled, "plain tensor")
        if tuple(shape) != chunk.sizes[len(chunk.sizes) - len(shape) :] or math.prod(shape) != elements:
            raise ValueError(f"its shape is {tuple(shape)}, not {chunk.sizes}")
        if elements and not _is_row_major(shape, stride):
            raise ValueError("its elements are not in row-major order")
        entry = archive.getinfo(f"{root}data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED or not 0 <= first * item_bytes(dtype) <= entry.file_size - (
            elements * item_bytes(dtype)
        ):
            raise ValueError("its data is compressed or too short")
        if storage.__name__ not in (STORAGE_CLASSES[dtype], "UntypedStorage"):
            raise ValueError(f"its elements are of {storage.__name__}, not {dtype}")
    header = record.start + entry.header_offset
    with record.file.open("rb") as stream:
        stream.seek(header + 26)  # the local header repeats name and extra field
        name_length, extra_length = (int.from_bytes(stream.read(2), "little") for _ in range(2))
    start = header + 30 + name_length + extra_length + first * item_bytes(dtype)
    if start + elements * item_bytes(dtype) > record.start + record.length:
        raise ValueError("its data ends behind its record")
    return start


def _is_row_major(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    dense = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return all(size == 1 or step == full for size, step, full in zip(shape, stride, dense, strict=True))


def _record(folder: Path, info: Any, size_of: Callable[[str], int]) -> Record:
    name, start, length = info.relative_path, _count(info.offset), _count(info.length)
    if start + length > size_of(name):
        raise ValueError(f"a record in {name} ends behind its end")
    if (info.state or {}).get("transform_descriptors"):
        raise ValueError(f"a record in {name} is compressed or encrypted")
    return Record(folder / name, start, length, info)


def _size_of(folder: Path, name: str) -> int:
    if reason := why_not_inside(folder, name):
        raise ValueError(f"{shown(name)} {reason}")
    return (folder / name).stat().st_size


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError(f"{shown(number)} is no number of anything")
    return number


def _stored_tensor(name: str, entry: Stand, records: dict[tuple[str, Any], Record]) -> StoredTensor:
    shape, dtype, chunks = _sizes(entry.size), entry.properties.state[0].__name__, []
    if dtype not in ITEM_BITS:
        raise ValueError(f"{dtype} is no type of elements")
    for chunk in entry.chunks:
        offset, sizes = _sizes(chunk.offsets), _sizes(chunk.sizes)
        ends = [place + size for place, size in zip(offset, sizes, strict=True)]
        if any(end > whole for end, whole in zip(ends, shape, strict=True)):
            raise ValueError(f"a part of {name} lies outside of it")
        chunks.append(Chunk(offset, sizes, records[name, offset]))
    return StoredTensor(name, shape, dtype, tuple(chunks))


def _sizes(size: Any) -> tuple[int, ...]:
    return tuple(map(_count, sizes_of(size)))

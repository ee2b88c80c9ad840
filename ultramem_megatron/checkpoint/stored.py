"""What lies in a checkpoint's files, read piece by piece on one process, without ranks and without a model.

The format is that of torch.distributed.checkpoint: ``.metadata`` says which rectangle of which tensor lies where, and
each rectangle is what ``torch.save`` wrote, a zip archive whose one stored entry is the data. Both are pickles; they
are read with unpicklers that know a handful of plain names and run nothing else.
"""

import io
import math
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from ultramem_megatron.errors import CheckpointError

METADATA = ".metadata"
TABLE_SUFFIX = ".table.weight"

_METADATA_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata"),
        *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(str(t).removeprefix("torch.") for t in vars(torch).values() if isinstance(t, torch.dtype))},
}


@dataclass(frozen=True, slots=True)
class Record:
    """Consecutive bytes of a file."""

    file: Path
    start: int
    length: int
    info: Any = field(repr=False)
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
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]

    @property
    def num_bytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

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
    metadata: Metadata


def read_stored(folder: Path) -> Stored:
    """The list of what a checkpoint holds.

    Raises:
        CheckpointError: ``.metadata`` cannot be read, or is not a plain list.
    """
    try:
        with (folder / METADATA).open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
        assert isinstance(metadata, Metadata)
        records = {index: _record(folder, info) for index, info in metadata.storage_data.items()}
        tensors, objects = {}, {}
        for name, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata):
                tensors[name] = _stored_tensor(name, entry, records)
            else:
                objects[name] = records[MetadataIndex(name)]
    except Exception as error:  # whatever a damaged pickle does
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {folder}: {METADATA} cannot be read ({reason}); restore it") from None
    return Stored(tensors, objects, metadata)


class ChunkReader:
    """Reads rows of one chunk. A row is an index of its first axis that is longer than 1."""

    def __init__(self, chunk: Chunk, dtype: torch.dtype) -> None:
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
        except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, KeyError, ValueError) as error:
            raise CheckpointError(f"{chunk.record.file}: a tensor's record cannot be read ({error})") from None

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (excluded), in a tensor of as many dimensions as the chunk."""
        sizes = list(self.chunk.sizes)
        if sizes:
            sizes[self.axis] = stop - start
        part = torch.empty(sizes, dtype=self.dtype)
        self.read_into(part, start)
        return part

    def read_into(self, part: Tensor, start: int) -> None:
        """Fill ``part``, which is contiguous, with the rows from ``start`` on."""
        if not part.numel():
            return
        content: Any = part.view(-1).view(torch.uint8).numpy()
        with self.chunk.record.file.open("rb") as stream:
            stream.seek(self.data_start + start * self.row_elements * self.dtype.itemsize)
            filled = stream.readinto(content)
        if filled != part.numel() * part.element_size():
            raise CheckpointError(f"{self.chunk.record.file} ends within a tensor")


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _METADATA_NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no list of tensors needs")
        return super().find_class(module, name)


class _TensorUnpickler(pickle.Unpickler):
    """Yields the arguments that torch would rebuild a tensor from."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: arguments
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no plain tensor needs")

    def persistent_load(self, pid: Any) -> Any:
        return pid


class _Slice(io.RawIOBase):
    """A record as a file of its own."""

    def __init__(self, stream: BinaryIO, record: Record) -> None:
        self.stream, self.record, self.place = stream, record, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.record.length}[whence]
        self.place = origin + offset
        if self.place < 0:
            raise ValueError("a place before the record")
        return self.place

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self.record.length - self.place))
        self.stream.seek(self.record.start + self.place)
        data = self.stream.read(size)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def _data_start(chunk: Chunk, dtype: torch.dtype) -> int:
    """Where in the file the elements begin, in row-major order."""
    record, elements = chunk.record, math.prod(chunk.sizes)
    with record.file.open("rb") as stream, zipfile.ZipFile(io.BufferedReader(_Slice(stream, record))) as archive:
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        (_, _, key, *_), first, shape, stride, *_ = _TensorUnpickler(io.BytesIO(archive.read(pickled))).load()
        if tuple(shape) != chunk.sizes[len(chunk.sizes) - len(shape) :] or math.prod(shape) != elements:
            raise ValueError(f"its shape is {tuple(shape)}, not {chunk.sizes}")
        if elements and not torch.empty(0).new_empty(shape, device="meta").as_strided(shape, stride).is_contiguous():
            raise ValueError("its elements are not in row-major order")
        entry = archive.getinfo(pickled.removesuffix("data.pkl") + f"data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < (first + elements) * dtype.itemsize:
            raise ValueError("its data is compressed or too short")
        stream.seek(record.start + entry.header_offset + 26)  # the local header repeats name and extra field
        name_length, extra_length = (int.from_bytes(stream.read(2), "little") for _ in range(2))
        return record.start + entry.header_offset + 30 + name_length + extra_length + first * dtype.itemsize


def _record(folder: Path, info: Any) -> Record:
    name = Path(info.relative_path)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{name} is not in the folder")
    return Record(folder / name, info.offset, info.length, info)


def _stored_tensor(name: str, entry: TensorStorageMetadata, records: dict[MetadataIndex, Record]) -> StoredTensor:
    chunks = tuple(
        Chunk(tuple(chunk.offsets), tuple(chunk.sizes), records[MetadataIndex(name, chunk.offsets)])
        for chunk in entry.chunks
    )
    return StoredTensor(name, tuple(entry.size), entry.properties.dtype, chunks)

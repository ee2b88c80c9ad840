"""A checkpoint rewritten for another number of ranks: the same logical content, cut so that each rank reads its own.

Any layout loads any checkpoint anyway. After this, a rank of the new layout finds its part of every table in one file,
in pieces of one row block, where it would else read (and hold) whole shards of the old layout to take a part of each.
Neither torch nor megatron-core is imported: the process holds two row blocks and some 50 MB.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ultramem_megatron.checkpoint import store
from ultramem_megatron.checkpoint.digest import Bits, digest_bits, tensor_digest
from ultramem_megatron.checkpoint.integrity import changed_files, describe_damage
from ultramem_megatron.checkpoint.loadable import COMMON, FORMAT, check_loadable
from ultramem_megatron.checkpoint.manifest import Manifest, read_manifest
from ultramem_megatron.checkpoint.stored import (
    METADATA,
    Chunk,
    ChunkReader,
    Record,
    Stored,
    StoredTensor,
    item_bytes,
    new_bits,
    read_stored,
)
from ultramem_megatron.checkpoint.torch_file import write_tensor
from ultramem_megatron.checkpoint.torch_pickle import DCP, Pickler, Stand, torch_size, with_state
from ultramem_megatron.errors import CheckpointError

BLOCK_BYTES = 64 * 2**20
"""Rows of a table held at a time. At most two such blocks are in memory, whatever the size of the table."""

_COPY_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Rectangle:
    """What one rank of the memory group holds of a table."""

    rows: range
    columns: range


@dataclass(frozen=True, slots=True)
class Cut:
    """How tables are to lie in the files: rows in so many parts, the columns of each in so many; a file for each."""

    row_parts: int = 1
    column_parts: int = 1

    def __post_init__(self) -> None:
        if self.row_parts < 1 or self.column_parts < 1:
            raise CheckpointError(f"--ranks {self.row_parts * self.column_parts} must be at least 1")

    @property
    def files(self) -> int:
        """As many as ranks share a table."""
        return self.row_parts * self.column_parts

    def rectangles(self, shape: tuple[int, ...]) -> list[Rectangle]:
        """Of a table, rank by rank; a rank may have nothing."""
        rows, columns = shape
        return [
            Rectangle(_even_range(rows, self.row_parts, row), _even_range(columns, self.column_parts, column))
            for row in range(self.row_parts)
            for column in range(self.column_parts)
        ]


def _even_range(total: int, parts: int, index: int) -> range:
    return range(index * total // parts, (index + 1) * total // parts)


def reshard(source: Path, root: Path, cut: Cut, block_bytes: int = BLOCK_BYTES) -> Path:
    """Write the checkpoint ``source`` anew, as the newest checkpoint of ``root``. On one process.

    Args:
        source: A checkpoint's folder.
        root: A folder of checkpoints, which need not exist.
        cut: How tables are to lie in the files. Everything else is copied piece by piece, spread over the files.
        block_bytes: Size of a row block.

    Raises:
        CheckpointError: ``source`` is damaged; ``root`` has a checkpoint of that step, or cannot be written.
    """
    manifest = read_manifest(source)
    changed = changed_files(source, manifest, manifest.sha256)
    if changed:
        raise CheckpointError(describe_damage(source, [f"{name} has changed since it was written" for name in changed]))
    check_loadable(source, manifest)
    try:
        return _write(source, manifest, root, cut, block_bytes)
    except OSError as error:
        # the source was read through just before: what fails now is the writing
        raise CheckpointError(
            f"--out {root} cannot be written ({error.strerror or error}); nothing was left there: name a folder that "
            "can be written and has room for another copy of the checkpoint"
        ) from error


def _write(source: Path, manifest: Manifest, root: Path, cut: Cut, block_bytes: int) -> Path:
    target = store.step_folder(root, manifest.step)
    if target.exists():
        raise CheckpointError(f"{target} exists already; name another folder with --out")
    stored = read_stored(source)
    folder = store.begin(root, manifest.step)
    try:
        with ExitStack() as stack:
            files = [_OutFile(stack, folder / f"__{rank}_0.distcp") for rank in range(cut.files)]
            tables = _write_tables(stored, manifest, cut, files, block_bytes)
            _copy_the_rest(stored, files)
        _write_metadata(folder, stored, tables, files)
        for name in (COMMON, FORMAT):
            shutil.copyfile(source / name, folder / name)
        return store.finish(root, folder, manifest.model_copy(update={"version": 2, "sha256": {}}), keep=None)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # gone already, if it has its name
        raise


class _OutFile:
    """A file that is written from its beginning to its end, and what was put where."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self.path = path
        self.stream: BinaryIO = stack.enter_context(path.open("wb"))
        self.written: dict[Stand, Stand] = {}

    @property
    def size(self) -> int:
        return self.stream.tell()

    def save(self, index: Stand, like: Record, part: Bits, dtype: str) -> None:
        """A tensor, in the format of the others."""
        start = self.size
        write_tensor(self.stream, part, dtype)
        self._note(index, like, start)

    def copy(self, index: Stand, record: Record) -> None:
        """The bytes of a record as they are."""
        start = self.size
        with record.file.open("rb") as stream:
            stream.seek(record.start)
            left = record.length
            while data := stream.read(min(left, _COPY_BYTES)):
                self.stream.write(data)
                left -= len(data)
        if left:
            raise CheckpointError(f"{record.file} ends within a record; restore it")
        self._note(index, record, start)

    def _note(self, index: Stand, like: Record, start: int) -> None:
        place = {"relative_path": self.path.name, "offset": start, "length": self.size - start}
        self.written[index] = with_state(like.info.module, type(like.info).__name__, like.info.state | place)


def _index(name: str, offset: tuple[int, ...] | None = None) -> Stand:
    place = {} if offset is None else {"offset": torch_size(offset)}
    return with_state(DCP, "MetadataIndex", {"fqn": name, "index": None, **place})


Pieces = dict[str, list[Stand]]
"""By table, the rectangles that it lies in, as ``.metadata`` lists them."""


def _write_tables(stored: Stored, manifest: Manifest, cut: Cut, files: list[_OutFile], block_bytes: int) -> Pieces:
    """Every table, row block by row block."""
    return {
        tensor.name: _write_table(tensor, manifest, cut, files, block_bytes)
        for tensor in stored.tensors.values()
        if tensor.is_table
    }


def _write_table(
    tensor: StoredTensor, manifest: Manifest, cut: Cut, files: list[_OutFile], block_bytes: int
) -> list[Stand]:
    pieces, total = [], 0
    rectangles = cut.rectangles(tensor.shape)
    readers = [(chunk, ChunkReader(chunk, tensor.dtype)) for chunk in tensor.chunks]
    for rows in _row_blocks(tensor, rectangles, block_bytes):
        block = _assemble(tensor, readers, rows)
        total += digest_bits(tensor.name, block, (rows.start, 0), tensor.shape)
        for file, rectangle in zip(files, rectangles, strict=True):
            if rows.start in rectangle.rows and rectangle.columns:
                offset = rows.start, rectangle.columns.start
                part = np.ascontiguousarray(block[:, rectangle.columns.start : rectangle.columns.stop])
                file.save(_index(tensor.name, offset), tensor.chunks[0].record, part, tensor.dtype)
                sizes = {"offsets": torch_size(offset), "sizes": torch_size(part.shape)}
                pieces.append(with_state(DCP, "ChunkStorageMetadata", sizes))
    saved = manifest.digests.get(tensor.name)
    if saved is not None and saved != tensor_digest(tensor.shape, tensor.dtype, total):
        raise CheckpointError(f"the content of {tensor.name} is not what was saved; use an older checkpoint")
    return pieces


def _row_blocks(tensor: StoredTensor, rectangles: list[Rectangle], block_bytes: int) -> Iterator[range]:
    """Of full width, none across a border between rectangles."""
    step = max(1, block_bytes // (tensor.shape[1] * item_bytes(tensor.dtype)))
    for rows in dict.fromkeys(rectangle.rows for rectangle in rectangles):
        for start in range(rows.start, rows.stop, step):
            yield range(start, min(start + step, rows.stop))


def _assemble(tensor: StoredTensor, readers: list[tuple[Chunk, ChunkReader]], rows: range) -> Bits:
    block = new_bits((len(rows), tensor.shape[1]), tensor.dtype)
    filled = 0
    for chunk, reader in readers:
        (first, left), (height, width) = chunk.offset, chunk.sizes
        start, stop = max(rows.start, first), min(rows.stop, first + height)
        if start >= stop:
            continue
        place = block[start - rows.start : stop - rows.start, left : left + width]
        if reader.axis == 0 and place.flags.c_contiguous:
            reader.read_into(place, start - first)
        elif reader.axis == 0:
            place[:] = reader.read(start - first, stop - first)
        else:  # a chunk of a single row counts its columns
            place[:] = reader.read(0, width)
        filled += place.size
    if filled != block.size:
        raise CheckpointError(f"parts of {tensor.name} are in no file; use an older checkpoint")
    return block


def _copy_the_rest(stored: Stored, files: list[_OutFile]) -> None:
    """Dense tensors and objects, each to the file that is smallest by then."""
    for tensor in stored.tensors.values():
        if not tensor.is_table:
            for chunk in tensor.chunks:
                ChunkReader(chunk, tensor.dtype)  # refuses what is no tensor: bytes are copied without a further look
                smallest = min(files, key=lambda file: file.size)
                smallest.copy(_index(tensor.name, chunk.offset), chunk.record)
    for name, record in stored.objects.items():
        min(files, key=lambda file: file.size).copy(_index(name), record)


def _write_metadata(folder: Path, stored: Stored, tables: Pieces, files: list[_OutFile]) -> None:
    listed = dict(stored.metadata.state_dict_metadata)
    for name, chunks in tables.items():
        listed[name] = with_state(DCP, "TensorStorageMetadata", listed[name].state | {"chunks": chunks})
    written = {index: info for file in files for index, info in file.written.items()}
    before = stored.metadata.state
    state = {name: before.get(name) for name in ("planner_data", "storage_meta", "version")}
    metadata = with_state(DCP, "Metadata", {"state_dict_metadata": listed, "storage_data": written, **state})
    with (folder / METADATA).open("wb") as stream:
        Pickler(stream, protocol=4).dump(metadata)

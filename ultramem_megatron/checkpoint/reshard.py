"""A checkpoint rewritten for another number of ranks: the same logical content, cut so that each rank reads its own.

Any layout loads any checkpoint anyway. After this, a rank of the new layout finds its part of every table in one file,
in pieces of one row block, where it would else read (and hold) whole shards of the old layout to take a part of each.
"""

import pickle
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)

from ultramem_megatron.checkpoint import store
from ultramem_megatron.checkpoint.digest import digest_part, tensor_digest
from ultramem_megatron.checkpoint.integrity import changed_files, describe_damage
from ultramem_megatron.checkpoint.manifest import Manifest, read_manifest
from ultramem_megatron.checkpoint.stored import METADATA, Chunk, ChunkReader, Record, Stored, StoredTensor, read_stored
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.parallel.partition.base import Shard, even_range

BLOCK_BYTES = 64 * 2**20
"""Rows of a table held at a time. At most two such blocks are in memory, whatever the size of the table."""

_COPY_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Cut:
    """How tables are to lie in the files."""

    partition: PartitionName
    """Number-wise or dimension-wise."""
    ranks: int
    """Of the ``mem`` group; as many files are written."""

    def __post_init__(self) -> None:
        if self.partition not in (PartitionName.NUMBER_WISE, PartitionName.DIMENSION_WISE):
            raise CheckpointError(
                f"--partition {self.partition} does not cut tables; number_wise and dimension_wise do"
            )
        if self.ranks < 1:
            raise CheckpointError(f"--ranks {self.ranks} must be at least 1")

    def shards(self, shape: tuple[int, ...]) -> list[Shard]:
        """Of a table, rank by rank; a rank may have nothing."""
        rows, columns = shape
        if self.partition == PartitionName.NUMBER_WISE:
            return [Shard(even_range(rows, self.ranks, rank), range(columns)) for rank in range(self.ranks)]
        return [Shard(range(rows), even_range(columns, self.ranks, rank)) for rank in range(self.ranks)]


def reshard(source: Path, root: Path, cut: Cut, block_bytes: int = BLOCK_BYTES) -> Path:
    """Write the checkpoint ``source`` anew, as the newest checkpoint of ``root``. On one process.

    Args:
        source: A checkpoint's folder.
        root: A folder of checkpoints, which need not exist.
        cut: How tables are to lie in the files. Everything else is copied piece by piece, spread over the files.
        block_bytes: Size of a row block.

    Raises:
        CheckpointError: ``source`` is damaged, or ``root`` has a checkpoint of that step.
    """
    manifest = read_manifest(source)
    target = store.step_folder(root, manifest.step)
    if target.exists():
        raise CheckpointError(f"{target} exists already; name another folder with --out")
    changed = changed_files(source, manifest, manifest.sha256)
    if changed:
        raise CheckpointError(describe_damage(source, [f"{name} has changed since it was written" for name in changed]))
    stored = read_stored(source)
    folder = store.begin(root, manifest.step)
    try:
        with ExitStack() as stack:
            files = [_OutFile(stack, folder / f"__{rank}_0.distcp") for rank in range(cut.ranks)]
            tables = _write_tables(stored, manifest, cut, files, block_bytes)
            _copy_the_rest(stored, files)
        _write_metadata(folder, stored, tables, files)
        for name in manifest.files:
            if name != METADATA and not name.endswith(".distcp"):
                shutil.copyfile(source / name, folder / name)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return store.finish(root, folder, manifest.model_copy(update={"version": 2, "sha256": {}}), keep=None)


class _OutFile:
    """A file that is written from its beginning to its end, and what was put where."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self.path = path
        self.stream: BinaryIO = stack.enter_context(path.open("wb"))
        self.written: dict[MetadataIndex, Any] = {}

    @property
    def size(self) -> int:
        return self.stream.tell()

    def save(self, index: MetadataIndex, like: Record, part: Tensor) -> None:
        """A tensor, in the format of the others."""
        start = self.size
        torch.save(part, self.stream)
        self._note(index, like, start)

    def copy(self, index: MetadataIndex, record: Record) -> None:
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

    def _note(self, index: MetadataIndex, like: Record, start: int) -> None:
        self.written[index] = replace(like.info, relative_path=self.path.name, offset=start, length=self.size - start)


def _write_tables(
    stored: Stored, manifest: Manifest, cut: Cut, files: list[_OutFile], block_bytes: int
) -> dict[str, list[ChunkStorageMetadata]]:
    """Every table, row block by row block; returns how each is cut now."""
    pieces: dict[str, list[ChunkStorageMetadata]] = {}
    for tensor in stored.tensors.values():
        if not tensor.is_table:
            continue
        pieces[tensor.name], total = [], 0
        shards = cut.shards(tensor.shape)
        readers = [(chunk, ChunkReader(chunk, tensor.dtype)) for chunk in tensor.chunks]
        for rows in _row_blocks(tensor, shards, block_bytes):
            block = _assemble(tensor, readers, rows)
            total += digest_part(tensor.name, block, (rows.start, 0), tensor.shape)
            for file, shard in zip(files, shards, strict=True):
                if rows.start in shard.rows and shard.columns:
                    offset = torch.Size((rows.start, shard.columns.start))
                    part = block[:, shard.columns.start : shard.columns.stop]
                    # torch.save writes the whole storage of a view
                    part = part if part.is_contiguous() else part.contiguous()
                    file.save(MetadataIndex(tensor.name, offset), tensor.chunks[0].record, part)
                    pieces[tensor.name].append(ChunkStorageMetadata(offset, part.shape))
        saved = manifest.digests.get(tensor.name)
        if saved is not None and saved != tensor_digest(tensor.shape, tensor.dtype, total):
            raise CheckpointError(f"the content of {tensor.name} is not what was saved; use an older checkpoint")
    return pieces


def _row_blocks(tensor: StoredTensor, shards: list[Shard], block_bytes: int) -> Iterator[range]:
    """Of full width, none across a border between shards."""
    step = max(1, block_bytes // (tensor.shape[1] * tensor.dtype.itemsize))
    for rows in dict.fromkeys(shard.rows for shard in shards):
        for start in range(rows.start, rows.stop, step):
            yield range(start, min(start + step, rows.stop))


def _assemble(tensor: StoredTensor, readers: list[tuple[Chunk, ChunkReader]], rows: range) -> Tensor:
    block = torch.empty(len(rows), tensor.shape[1], dtype=tensor.dtype)
    filled = 0
    for chunk, reader in readers:
        (first, left), (height, width) = chunk.offset, chunk.sizes
        start, stop = max(rows.start, first), min(rows.stop, first + height)
        if start >= stop:
            continue
        place = block[start - rows.start : stop - rows.start, left : left + width]
        if reader.axis == 0 and place.is_contiguous():
            reader.read_into(place, start - first)
        elif reader.axis == 0:
            place.copy_(reader.read(start - first, stop - first))
        else:  # a chunk of a single row counts its columns
            place.copy_(reader.read(0, width))
        filled += place.numel()
    if filled != block.numel():
        raise CheckpointError(f"parts of {tensor.name} are in no file; use an older checkpoint")
    return block


def _copy_the_rest(stored: Stored, files: list[_OutFile]) -> None:
    """Dense tensors and objects, each to the file that is smallest by then."""
    for tensor in stored.tensors.values():
        if not tensor.is_table:
            for chunk in tensor.chunks:
                index = MetadataIndex(tensor.name, chunk.offset)
                min(files, key=lambda file: file.size).copy(index, chunk.record)
    for name, record in stored.objects.items():
        min(files, key=lambda file: file.size).copy(MetadataIndex(name), record)


def _write_metadata(
    folder: Path, stored: Stored, tables: dict[str, list[ChunkStorageMetadata]], files: list[_OutFile]
) -> None:
    listed = dict(stored.metadata.state_dict_metadata)
    for name, chunks in tables.items():
        entry = listed[name]
        assert isinstance(entry, TensorStorageMetadata)
        listed[name] = replace(entry, chunks=chunks)
    written = {index: info for file in files for index, info in file.written.items()}
    metadata = Metadata(listed, storage_data=written, storage_meta=StorageMeta(), version=stored.metadata.version)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))

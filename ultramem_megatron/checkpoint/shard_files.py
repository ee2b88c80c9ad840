"""This rank's files of a checkpoint: planned together, staged, then written by any thread without the other ranks.

megatron-core's ``torch_dist`` strategy plans a save, and would then fork a process for each file (in the background: a
process that forks them, and a server for their results, 270 MB in each rank, that outlives a killed rank). Here the
same files are written by a thread: nothing is forked beside running threads and devices, nothing outlives the rank,
and results and errors come straight home. torch's writer, ``fsync`` and hashing do not hold the interpreter's lock.
"""

import inspect
import io
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import serialization
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME, TorchCommonSaveStrategy
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from ultramem_megatron.checkpoint.digest import Piece
from ultramem_megatron.checkpoint.tensor_digest import digest_piece
from ultramem_megatron.files import sha256_of
from ultramem_megatron.parallel.patching import put

FILES_PER_RANK = 2
"""Written at the same time."""

# a decorator switches the cyclic garbage collector off, which is right for a fork and wrong beside training
_write_bucket = inspect.unwrap(FileSystemWriterAsync.write_preloaded_data)


@dataclass(frozen=True, slots=True)
class WrittenShards:
    """What one rank wrote; small enough to send between ranks."""

    sizes: dict[str, int]
    """In bytes, of each file."""
    sha256: dict[str, str]
    pieces: list[Piece]
    """Digests of the rectangles that lie in them."""
    results: list[WriteResult]
    """For ``.metadata``."""


class ShardFiles:
    """The shards that this rank is to write into one checkpoint."""

    def __init__(self, content: dict[str, Any], folder: Path) -> None:
        """Plan the save. Collective over the world; no file is written, so that no rank fails here by itself.

        Args:
            content: A sharded state; dist_checkpointing takes it apart.
            folder: Empty, seen by all ranks.
        """
        self.folder = folder
        filesystem_async._results_queue = queue.Queue()  # else megatron-core starts its server
        strategy = _PlanOnly("torch_dist", 1, thread_count=FILES_PER_RANK)
        spread = FullyParallelSaveStrategyWrapper(strategy)  # what several ranks hold is written by any one of them
        with _common_in_memory() as common:
            dist_checkpointing.save(content, str(folder), sharded_strategy=spread, async_sharded_save=True)
        self._common = common
        assert strategy.writer is not None
        self._writer, self._metadata = strategy.writer, strategy.metadata
        self._buckets: list[Any] = self._writer.write_buckets or []
        self._config = CheckpointingConfig(strategy.backend, strategy.version)

    def stage(self, *, copy: bool) -> None:
        """Bring all that is to be written to host memory. No communication.

        Args:
            copy: Also what lies there already: training may then change its tensors.
        """
        if not self._buckets:
            return
        staged = self._writer.preload_tensors(self._buckets)  # hands through what is in host memory
        if copy:
            for bucket, (_, _, (_, tensors)) in zip(self._buckets, staged, strict=True):
                before = [tensor for _, tensor in bucket[2][1]]
                tensors[:] = [(item, _own(new, old)) for (item, new), old in zip(tensors, before, strict=True)]
        self._buckets[:] = staged

    def write(self) -> WrittenShards:
        """Digest the tensors, and write, flush and hash the files; then let the tensors go. No communication.

        Rank 0 writes what is no tensor as well (``common.pt``).

        Raises:
            OSError, RuntimeError: A file cannot be written.
        """
        if self._common.content:
            (self.folder / COMMON_STATE_FNAME).write_bytes(self._common.content)
        with ThreadPoolExecutor(FILES_PER_RANK, thread_name_prefix="shard") as pool:
            files = list(pool.map(self._write_file, range(len(self._buckets)), self._buckets))
        self._buckets.clear()
        return WrittenShards(
            {name: size for file in files for name, size in file.sizes.items()},
            {name: digest for file in files for name, digest in file.sha256.items()},
            [piece for file in files for piece in file.pieces],
            [result for file in files for result in file.results],
        )

    def _write_file(self, number: int, bucket: Any) -> WrittenShards:
        name, _, (_, tensors) = bucket
        path = Path(name)
        pieces = [
            digest_piece(item.index.fqn, tensor, item.tensor_data.chunk.offsets, item.tensor_data.size)
            for item, tensor in tensors
        ]
        outcome: queue.Queue[tuple[int, list[WriteResult] | Exception]] = queue.Queue()
        running: queue.Queue[int] = queue.Queue()
        running.put(number)
        _write_bucket([self._writer.transforms], number, bucket, outcome, running, use_fsync=True)
        _, results = outcome.get_nowait()
        if isinstance(results, Exception):
            raise results
        return WrittenShards({path.name: path.stat().st_size}, {path.name: sha256_of(path)}, pieces, results)

    def write_metadata(self, written: Sequence[WrittenShards]) -> None:
        """``.metadata`` and ``metadata.json``, from what all ranks wrote; for rank 0."""
        assert self._metadata is not None
        self._writer.finish(self._metadata, [shards.results for shards in written])
        save_config(self._config, str(self.folder))


class _CommonInMemory(TorchCommonSaveStrategy):
    """Keeps on rank 0 what megatron-core would write at once, where an error would leave the other ranks waiting."""

    content = b""

    def save_common(self, common_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        """No communication."""
        if dist.get_rank() == 0:
            buffer = io.BytesIO()
            torch.save(common_state_dict, buffer)
            self.content = buffer.getvalue()


@contextmanager
def _common_in_memory() -> Iterator[_CommonInMemory]:
    """For a call of ``dist_checkpointing.save``, which takes no strategy for this part."""
    common = _CommonInMemory("torch", 1)
    undo = put(serialization, "get_default_save_common_strategy", lambda: common)
    try:
        yield common
    finally:
        undo()


class _PlanOnly(TorchDistSaveShardedStrategy):
    """Plans as megatron-core does, and hands the plan over instead of functions that fork."""

    writer: FileSystemWriterAsync | None = None
    metadata: Metadata | None = None
    """On rank 0."""

    def _get_save_and_finalize_callbacks(
        self, writer: FileSystemWriterAsync, planned: tuple[Any, Metadata | None, Any]
    ) -> AsyncRequest:
        self.writer, (_, self.metadata, _) = writer, planned
        return AsyncRequest(None, (), [])


def _own(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return new.clone() if new.data_ptr() == old.data_ptr() else new

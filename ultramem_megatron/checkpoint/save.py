"""Write checkpoints: every rank its shards, one rank the manifest, nothing visible before all is on disk."""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer

from ultramem_megatron.checkpoint import store
from ultramem_megatron.checkpoint.content import sharded_state
from ultramem_megatron.checkpoint.digest import incomplete_tensors, join_pieces
from ultramem_megatron.checkpoint.disk import root_of
from ultramem_megatron.checkpoint.held_state import altered_states, missing_states
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.shard_files import ShardFiles, WrittenShards
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.parallel.agree import any_rank, on_all_ranks, on_first_rank

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Part = tuple[float, Result]
"""What a thread did, with the seconds that it took."""


@dataclass(frozen=True, slots=True)
class Saved:
    """How a save went."""

    step: int
    failure: str
    """Why there is no checkpoint of this step, the same on every rank; empty if there is one."""
    stall_seconds: float
    """That this rank stood still."""
    write_seconds: float
    """That threads wrote; right on rank 0 alone."""


class Saver:
    """Saves a run's checkpoints, one at a time, beside training or while training waits.

    A save has three parts: all ranks agree on who writes what, and copy it; a thread of each writes its shards; a
    thread of rank 0 publishes them. Ranks agree between the parts, in ``poll`` or ``wait``, as threads never
    communicate. A save that fails, for want of space say, leaves the checkpoints before it as they were.
    """

    def __init__(self, root: Path, keep: int, device: torch.device, *, beside_training: bool) -> None:
        """No communication.

        Args:
            root: The folder of checkpoints, seen by all ranks.
            keep: Newest checkpoints kept.
            device: Where the backend of the world reduces.
            beside_training: Return from ``start`` when the copy is made.
        """
        self.root, self.keep, self.device, self.beside_training = root, keep, device, beside_training
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: _Running | None = None

    def start(
        self, ddp: list[DistributedDataParallel], optimizer: ChainedOptimizer, manifest: Manifest
    ) -> Saved | None:
        """Begin a save; the one before it must have ended. Collective over the world.

        Args:
            ddp: This rank's wrapped model chunks.
            optimizer: Whose master weights and moments go along.
            manifest: ``files``, ``sha256`` and ``digests`` are filled in here.

        Returns:
            How it went; None if it goes on beside training.
        """
        assert self._running is None, "the save before it must have been waited for"
        self._running = _Running(manifest.step, self._parts(ddp, optimizer, manifest))
        return self._ended(self._running.go_on()) if self.beside_training else self.wait()

    def poll(self) -> Saved | None:
        """Go on with a running save, if the threads of all ranks are ready. Collective over the world.

        Returns:
            How it went, when it has ended now.
        """
        if self._running is None or not on_all_ranks(self._running.is_ready, self.device):
            return None
        return self._ended(self._running.go_on())

    def wait(self) -> Saved | None:
        """Bring a running save to its end; how it went, None if none was running. Collective over the world."""
        saved = None
        while self._running is not None:
            saved = self._ended(self._running.go_on())
        return saved

    def _ended(self, saved: Saved | None) -> Saved | None:
        if saved is not None:
            self._running = None
        return saved

    def _parts(
        self, ddp: list[DistributedDataParallel], optimizer: ChainedOptimizer, manifest: Manifest
    ) -> Generator[Future[Any], None, float]:
        """A save from beginning to end, which rests where threads of the ranks are at work; returns their seconds."""
        folder = _begin(self.root, manifest.step)
        try:
            files = ShardFiles(self._state(ddp, optimizer), folder)
            files.stage(copy=self.beside_training)
            writing = self._pool.submit(_timed, files.write)
            yield writing
            written = _agree(writing)
            publish = partial(
                _publish, self.root, folder, files, manifest, [shards for _, shards in written], self.keep
            )
            publishing = self._pool.submit(_timed, publish if dist.get_rank() == 0 else _nothing)
            del files, publish
            yield publishing
            published = _agree(publishing)
        except _SaveFailed:
            if dist.get_rank() == 0:
                _clear_away(folder)
            raise
        return max((seconds for seconds, _ in written), default=0.0) + max((s for s, _ in published), default=0.0)

    def _state(self, ddp: list[DistributedDataParallel], optimizer: ChainedOptimizer) -> dict[str, Any]:
        """What is to be written, after it was compared with what the run holds. Collective over the world.

        Raises:
            _SaveFailed: On all ranks, when any holds or describes less than all of it.
        """
        parts = optimizer.chained_optimizers
        self._stop_if(missing_states(parts))
        state = sharded_state(ddp, optimizer, loading=False)
        described = state["optimizer"]
        self._stop_if(
            altered_states(parts, [described] if len(parts) == 1 else [described[i] for i in range(len(parts))])
        )
        return state

    def _stop_if(self, reasons: list[str]) -> None:
        """Nothing, if no rank has a reason. Collective over the world."""
        if any_rank(bool(reasons), self.device):
            _raise_if_any("; ".join(reasons[:3]))


class _SaveFailed(Exception):
    """On all ranks alike."""


class _Running:
    """A save that is under way."""

    def __init__(self, step: int, parts: Generator[Future[Any], None, float]) -> None:
        self.step, self._parts = step, parts
        self._thread: Future[Any] | None = None
        self._stall_seconds = 0.0

    @property
    def is_ready(self) -> bool:
        """This rank's thread has done what it was given."""
        return self._thread is None or self._thread.done()

    def go_on(self) -> Saved | None:
        """Wait for this rank's thread, and take the next part up to where it rests; how it went if it was the last."""
        start = time.perf_counter()
        failure, write_seconds = "", 0.0
        try:
            if self._thread is not None:
                wait_for([self._thread])
            self._thread = next(self._parts)
        except StopIteration as end:
            self._thread, write_seconds = None, end.value
        except _SaveFailed as error:
            self._thread, failure = None, str(error)
        self._stall_seconds += time.perf_counter() - start
        if self._thread is not None:
            return None
        return Saved(self.step, failure, self._stall_seconds, write_seconds)


def _begin(root: Path, step: int) -> Path:
    try:
        return on_first_rank(partial(store.begin, root, step))
    except OSError as error:
        raise _SaveFailed(f"rank 0: {error}") from None


def _clear_away(folder: Path) -> None:
    """What there is of a save that failed; what cannot be removed now, the next start of the run removes."""
    try:
        if folder.exists():
            store.discard(folder)
    except OSError as error:
        logger.warning("%s cannot be removed: %s", folder, error)


def _publish(
    root: Path, folder: Path, files: ShardFiles, manifest: Manifest, written: list[WrittenShards], keep: int
) -> None:
    """Make what all ranks wrote the newest checkpoint; for rank 0."""
    files.write_metadata(written)
    store.wait_until_visible(folder, {name: size for shards in written for name, size in shards.sizes.items()})
    sha256 = {name: digest for shards in written for name, digest in shards.sha256.items()}
    pieces = [piece for shards in written for piece in shards.pieces]
    if holes := incomplete_tensors(pieces):
        raise CheckpointError(f"{holes[0]} would be written in part only (and so would {len(holes) - 1} more)")
    digests = join_pieces(pieces)
    store.finish(root, folder, manifest.model_copy(update={"digests": digests, "sha256": sha256}), keep)


def _nothing() -> None:
    """What the other ranks do while rank 0 publishes."""


def _timed(work: Callable[[], Result]) -> Part[Result]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _agree(part: Future[Part[Result]]) -> list[Part[Result]]:
    """What every rank's thread did, on rank 0; nothing on the others. Collective over the world.

    Raises:
        _SaveFailed: On all ranks, when a thread of any failed.
    """
    error = part.exception()
    error = root_of(error) if error else None
    if error is not None:
        logger.error("what failed on this rank:", exc_info=error)
    _raise_if_any(f"{type(error).__name__}: {error}".splitlines()[0] if error else "")
    gathered: list[Any] = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
    dist.gather_object(part.result(), gathered or None)
    return gathered


def _raise_if_any(failure: str) -> None:
    """On all ranks, when any has one. Collective over the world."""
    failures = [""] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    reasons = [f"rank {rank}: {failure}" for rank, failure in enumerate(failures) if failure]
    if reasons:
        raise _SaveFailed(reasons[0] + (f" (and {len(reasons) - 1} more ranks)" if len(reasons) > 1 else ""))


def package_versions() -> dict[str, str]:
    """Versions of what wrote the checkpoint."""
    return dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    for name in ("ultramem-megatron", "torch", "megatron-core", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from a source folder without install
            yield name, metadata.version(name)

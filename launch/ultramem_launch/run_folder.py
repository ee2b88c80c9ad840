"""The folder of a run in the hands of one start: locked, writable, and without what killed starts left."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ultramem_launch import exit_codes
from ultramem_launch.ending import attempt_of_this_process, clear_ending
from ultramem_launch.run_holder import Holder, this_process
from ultramem_launch.run_lock import RunHeldError, RunLock, is_of_another, kept, take
from ultramem_megatron.errors import LaunchError, UltraMemError
from ultramem_megatron.files import check_folder, failures_named, remove_leftovers

FOLDERS = ("checkpoints", "tensorboard", "watchdog")
GROWING = ("metrics.jsonl", "events.jsonl")
REPLACED = ("config.yaml", "plan.json", "status.json")


class RunFolder:
    """As a rank sees it. Rank 0 takes the lock before the ranks meet; the others are told when they have met."""

    def __init__(self, run_dir: Path, rank: int, mine: Holder) -> None:
        self.run_dir, self._mine, self._rank = run_dir, mine, rank
        self._lock: RunLock | None = None
        self._refusal: UltraMemError | None = None
        self._is_told = False

    def take(self) -> None:
        """For rank 0: take the lock and look at the folder, or keep the refusal for ``tell``."""
        try:
            self._lock = take(self.run_dir, self._mine)
            check_writable(self.run_dir)
        except UltraMemError as error:
            self._refusal = error
            self.release()
            return
        if not attempt_of_this_process() and self._lock.is_ours:
            begin(self.run_dir)

    def tell(self) -> None:
        """What rank 0 found; it raises that on all ranks.

        Raises:
            RunHeldError: Another start holds the run.
            FileError: The folder cannot be written.
        """
        if self._refusal is not None:
            raise self._refusal

    def told(self) -> None:
        """This rank knows from rank 0 that the folder is this start's."""
        self._is_told = True

    def may_write(self) -> bool:
        """Whether this rank may say in the folder why it ends."""
        if self._rank == 0:
            return not isinstance(self._refusal, RunHeldError)
        return self._is_told or not is_of_another(self.run_dir, self._mine)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While the block lasts other machines see that the run lives; at its end the lock is given back."""
        try:
            if self._lock is None:
                yield
            else:
                with kept(self._lock, _end_lost):
                    yield
        finally:
            self.release()

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        if self._lock is not None:
            self._lock.release()


def open_run_folder(run_dir: Path, rank: int) -> RunFolder:
    """As this rank sees it; rank 0 takes the lock."""
    folder = RunFolder(run_dir, rank, this_process())
    if rank == 0:
        folder.take()
    return folder


@contextmanager
def held_by_launcher(run_dir: Path, mine: Holder) -> Iterator[RunLock]:
    """The run in the hands of a launcher of this machine, for its ranks.

    Raises:
        RunHeldError: Another start holds it.
        FileError: It cannot be written.
    """
    lock = take(run_dir, mine)
    try:
        check_writable(run_dir)
        begin(run_dir)
        yield lock
    finally:
        lock.release()


def begin(run_dir: Path) -> None:
    """Forget how the run ended before, and remove what killed starts left. For who holds the lock."""
    with failures_named(run_dir):
        clear_ending(run_dir)
    for folder in (run_dir, run_dir / "job", run_dir / "watchdog"):
        remove_leftovers(folder)


def refuse_missing(run_dir: Path) -> None:
    """For verbs that use what a run has made.

    Raises:
        LaunchError: There is no such folder.
    """
    if not run_dir.is_dir():
        raise LaunchError(f"--run-dir {run_dir} is no folder; name that of a run, as given to `ultramem pretrain`")


def check_writable(run_dir: Path) -> None:
    """Refuse, before any work, a folder that a run could not write all its files into.

    Raises:
        FileError: A folder or file of it cannot be written.
        LaunchError: A file is where a folder should be, or the other way round.
    """
    for folder in (run_dir, *(run_dir / name for name in FOLDERS)):
        if folder.is_dir():
            check_folder(folder)
        elif folder.exists() or folder.is_symlink():
            raise LaunchError(f"{folder} must be a folder, and is none; move it away, or name another --run-dir")
    for path in (run_dir / name for name in (*GROWING, *REPLACED)):
        if path.exists() and not path.is_file():
            raise LaunchError(f"{path} must be a file, and is none; move it away, or name another --run-dir")
    for path in (run_dir / name for name in GROWING):
        if path.exists():
            with failures_named(path):
                os.close(os.open(path, os.O_WRONLY | os.O_APPEND))


def _end_lost(words: str) -> None:
    print(f"{RunHeldError.__name__}: {words}", file=sys.stderr, flush=True)
    os._exit(exit_codes.BAD_INPUT)

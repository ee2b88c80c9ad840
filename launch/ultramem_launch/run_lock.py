"""One run, one folder: ``lock.json`` in it names who trains there, and a second start is refused.

It is a plain file, made in one piece where there was none, so it needs no locks of the file system. Who holds it is a
process that outlives the ranks: the launcher of ``--local``, the script of a job, else rank 0. A holder that is gone
loses it to the next start:

* on the machine of the holder, when its process is gone;
* elsewhere, when Slurm says that its job is over, or has started it again;
* else when rank 0 has not touched the file for ``SILENT_SECONDS``. Should it still be there, cut off for a while, it
  finds another's name in the file and ends without writing.

Of several starts that find the same dead holder one succeeds: each makes a file named after that holder, which only one
of them can, and moves it over ``lock.json``.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ultramem_launch.run_holder import Holder, is_running
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.files import create_text, failures_named

logger = logging.getLogger(__name__)

LOCK_FILE = "lock.json"
BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""Several beats, and longer than an NFS client believes what it knows of a file."""
TORN_SECONDS = 1.0
"""Where files get no second names, a lock is seen before its content."""


class RunHeldError(LaunchError):
    """Another start holds the run; nothing of its folder may be touched, not even to say so."""


class RunLock:
    """The lock of a run folder in the hands of this start."""

    def __init__(self, run_dir: Path, holder: Holder, *, is_ours: bool, made: list[Path] | None = None) -> None:
        """Made by ``take``.

        Args:
            run_dir: The folder.
            holder: Who stands in the lock.
            is_ours: This process took it, and gives it back; else it is of the launcher or the job's script.
            made: Folders that were made for it, innermost first.
        """
        self.run_dir, self.holder, self.is_ours, self._made = run_dir, holder, is_ours, made or []

    def is_lost(self) -> bool:
        """Whether another start has taken it. Touches it, which tells others that we are there."""
        with suppress(OSError):  # a server of files that does not answer is no reason to end
            last = last_holder(self.run_dir)
            if last is not None and last.token != self.holder.token:
                return True
            if last is None:  # somebody has removed it
                create_text(self.run_dir / LOCK_FILE, self.holder.text)
            os.utime(self.run_dir / LOCK_FILE)
        return False

    def release(self) -> None:
        """Give it back, and remove folders that were made for it and are empty."""
        if self.is_ours:
            release(self.run_dir, self.holder.launch, self.holder.token)
            with suppress(OSError):
                for folder in self._made:
                    folder.rmdir()


def take(run_dir: Path, mine: Holder, *, silent_seconds: float = SILENT_SECONDS) -> RunLock:
    """The lock of ``run_dir``, which is made if missing; that of a holder who is gone is taken over.

    Args:
        run_dir: The folder.
        mine: What ``this_process`` gave. If the lock is of the same launch, this process joins it.
        silent_seconds: How long a holder elsewhere may be silent.

    Raises:
        RunHeldError: Another start holds it; nothing was changed.
        FileError: The folder cannot be written.
    """
    missing = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    while True:
        last = last_holder(run_dir)
        if last is None:
            with suppress(FileExistsError):
                create_text(run_dir / LOCK_FILE, mine.text)
                return RunLock(run_dir, mine, is_ours=True, made=missing)
            continue
        if last.launch and last.launch == mine.launch and not _is_gone_here(last, mine):
            return RunLock(run_dir, last, is_ours=not last.launch.startswith(("local ", "job ")))
        if _is_alive(run_dir, last, mine, silent_seconds):
            if last_holder(run_dir) != last:  # meanwhile it has ended, or lost it to another
                continue
            raise RunHeldError(held_words(run_dir, last))
        if _take_over(run_dir, last, mine):
            logger.warning("%s: took over from %s, which is gone", run_dir / LOCK_FILE, last.words)
            return RunLock(run_dir, mine, is_ours=True, made=missing)


def refuse_held(run_dir: Path, mine: Holder, *, silent_seconds: float = SILENT_SECONDS) -> None:
    """For who does not train, but changes what a start reads. Takes nothing.

    Raises:
        RunHeldError: A start holds the run.
    """
    last = last_holder(run_dir)
    if last is not None and _is_alive(run_dir, last, mine, silent_seconds):
        raise RunHeldError(held_words(run_dir, last))


def is_of_another(run_dir: Path, mine: Holder) -> bool:
    """Whether the lock is of another launch, as far as can be told at once. For ranks that were not told yet."""
    last = last_holder(run_dir)
    return last is not None and last.launch != mine.launch and not _is_gone_here(last, mine)


def release(run_dir: Path, launch: str, token: str = "") -> None:
    """Give the lock back, if it is still of this launch (and start)."""
    with suppress(OSError):  # who is gone loses it anyway
        last = last_holder(run_dir)
        if last is None or last.launch != launch or (token and last.token != token):
            return
        for path in (run_dir / LOCK_FILE, *run_dir.glob(".*.claim")):
            path.unlink(missing_ok=True)


def held_words(run_dir: Path, holder: Holder) -> str:
    """The refusal."""
    stop = f"`scancel {holder.job}`" if holder.job else f"`kill {holder.pid}` there, which lets it save,"
    return (
        f"--run-dir {run_dir} is in use by {holder.words}, and two starts would destroy each other's files; end it "
        f"with {stop} or name another folder. {LOCK_FILE} there names it, and is taken over once that process is gone"
    )


@contextmanager
def kept(lock: RunLock, on_lost: Callable[[str], None], beat_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """While the block lasts a thread tells other machines that the holder lives. For rank 0.

    Args:
        lock: What ``take`` gave.
        on_lost: Called by the thread, with a sentence, when another start has taken the lock; ends the process.
        beat_seconds: Between two looks.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(beat_seconds):
            if lock.is_lost():
                last = last_holder(lock.run_dir)
                on_lost(
                    f"{lock.run_dir} was taken over by {last.words if last else 'another start'}, for which this one "
                    "was silent too long; it ends without writing anything more"
                )
                return

    thread = threading.Thread(target=watch, name="run lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def last_holder(run_dir: Path) -> Holder | None:
    """Who holds the lock, or is about to take it over; None if nobody does."""
    holder = _read(run_dir / LOCK_FILE)
    while holder is not None and (next_one := _read(_claim(run_dir, holder))) is not None:
        holder = next_one
    return holder


def _take_over(run_dir: Path, last: Holder, mine: Holder) -> bool:
    """Take the place of a holder who is gone. False if another was faster."""
    claim = _claim(run_dir, last)
    try:
        create_text(claim, mine.text)
    except FileExistsError:
        return False
    if last_holder(run_dir) != mine:  # ``last`` has lost it before
        claim.unlink(missing_ok=True)
        return False
    with failures_named(run_dir / LOCK_FILE):
        claim.replace(run_dir / LOCK_FILE)
    for path in run_dir.glob(".*.claim"):  # of other holders before us; whoever claims ours has our token in its name
        if path != _claim(run_dir, mine):
            path.unlink(missing_ok=True)
    return True


def _claim(run_dir: Path, holder: Holder) -> Path:
    return run_dir / f".{holder.token}.claim"


def _read(path: Path) -> Holder | None:
    """None if there is no such file. What is torn is of nobody: its writer's machine went down."""
    for last_try in (False, True):
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            with failures_named(path, "read"):
                raise error
        try:
            holder = Holder(**json.loads(content))
            if holder.is_sound:
                return holder
        except (ValueError, TypeError):
            pass
        if not last_try:
            time.sleep(TORN_SECONDS)
    return Holder(token=hashlib.sha256(path.name.encode() + content).hexdigest()[:16], host="an unknown machine", pid=0)


def _is_alive(run_dir: Path, last: Holder, mine: Holder, silent_seconds: float) -> bool:
    """Whether the holder may still write."""
    if last.pid <= 0 or _is_gone_here(last, mine):
        return False
    if last.machine == mine.machine:
        return True
    if last.job and last.job != mine.job:
        word = _word_of_slurm(last)
        if word is not None:
            return word
    return not _is_silent(run_dir, last, silent_seconds)


def _is_gone_here(last: Holder, mine: Holder) -> bool:
    """Whether it is certain, without asking or waiting, that the holder is gone."""
    starts = [one.launch.removeprefix("job ").rpartition(".") for one in (last, mine) if one.launch.startswith("job ")]
    if len(starts) == 2 and starts[0][0] == starts[1][0] and starts[0][2] != starts[1][2]:
        return True  # Slurm starts a job again when the start before is over, or its node is lost
    return last.machine == mine.machine and not is_running(last.pid, last.process_started)


def _word_of_slurm(last: Holder) -> bool | None:
    """Whether the holder's job is there; None if Slurm cannot tell."""
    from ultramem_launch.slurm.client import UNREACHABLE, find_state
    from ultramem_launch.slurm.progress import is_active

    state = find_state(last.job).state
    if state in (UNREACHABLE, "UNKNOWN"):
        return None
    if state == "RUNNING" and not last.launch.startswith("job "):
        return None  # an allocation may outlive the run in it
    return is_active(state)


def _is_silent(run_dir: Path, last: Holder, seconds: float) -> bool:
    """Wait whether the holder touches its lock. One that is replaced meanwhile is not silent."""
    logger.warning("%s names %s; waiting up to %.0f s for a sign of it", run_dir / LOCK_FILE, last.words, seconds)
    before, deadline = _touched(run_dir), time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(1.0, seconds / 10))
        if _touched(run_dir) != before:
            return False
    return True


def _touched(run_dir: Path) -> tuple[int, ...]:
    """When the lock was touched, as the server of files knows it: opening asks, looking may not."""
    try:
        with (run_dir / LOCK_FILE).open("rb") as stream:
            found = os.fstat(stream.fileno())
    except FileNotFoundError:
        return ()
    return (found.st_mtime_ns, found.st_ino)

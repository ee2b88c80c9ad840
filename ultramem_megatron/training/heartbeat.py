"""What each rank says of itself while it lives, in a file of the run folder, and who stands out when none gets on."""

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from ultramem_megatron.files import replace_text

WATCHDOG_FOLDER = "watchdog"

_WAITING = (
    "/torch/distributed/",
    "/ultramem_megatron/parallel/",
    "/pipeline_parallel/p2p",
    "/tensor_parallel/mappings",
)
"""Files in which a rank waits for others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """One rank, a moment ago."""

    rank: int
    host: str
    """What ``machine_name`` gave there."""
    pid: int
    process_started: float
    """Seconds since 1970, so that another process of the same number is told apart."""
    beats: int
    """Grows as long as the process runs."""
    step: int
    """Steps done."""
    doing: str
    stands_still: bool = False
    """It has noticed itself that it gets no further."""
    where: str = ""
    """Innermost line of its main thread, once it stands still."""
    waits: bool = False
    """Whether that line waits for other ranks."""
    has_left: bool = False
    """Its loop has ended, by itself or by an exception: it says itself why."""

    def write(self, folder: Path) -> None:
        """Replace the rank's file."""
        replace_text(beat_file(folder, self.rank), json.dumps(asdict(self)))


def machine_name() -> str:
    """As people know it: Slurm's name for a node may be another than the machine's own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def beat_file(folder: Path, rank: int) -> Path:
    """Where a rank's heartbeat is."""
    return folder / f"rank_{rank:05d}.json"


def stack_file(folder: Path, rank: int) -> Path:
    """Where a rank's stacks are written."""
    return folder / f"rank_{rank:05d}.stacks.txt"


def read_heartbeats(folder: Path, world_size: int) -> dict[int, Heartbeat]:
    """Of every rank whose file can be read."""
    found = {}
    for rank in range(world_size):
        try:
            found[rank] = Heartbeat(**json.loads(beat_file(folder, rank).read_text()))
        except (OSError, ValueError, TypeError):  # not begun, or on a file system that is gone: that says enough
            continue
    return found


def forget_earlier(folder: Path) -> None:
    """Remove the heartbeats of an earlier start. For one process, before any rank writes."""
    for file in folder.glob("rank_*.json"):
        file.unlink(missing_ok=True)


def place_of_main_thread() -> tuple[str, bool]:
    """The innermost line of this process's main thread, and whether it waits for other ranks there."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "unknown", False
    where = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
    waits = False
    while frame is not None and not waits:
        waits = any(part in frame.f_code.co_filename for part in _WAITING)
        frame = frame.f_back
    return where, waits


def silent_ranks(before: dict[int, Heartbeat], after: dict[int, Heartbeat], world_size: int) -> list[int]:
    """Ranks whose process has not run between two readings; those that wait for their own verdict do not count."""
    return [
        rank
        for rank in range(world_size)
        if rank not in after
        or (not after[rank].stands_still and rank in before and after[rank].beats == before[rank].beats)
    ]


def lost_ranks(beats: Mapping[int, Heartbeat]) -> list[Heartbeat]:
    """Ranks of this machine whose process is gone though it neither left its loop nor ends a run that hangs."""
    mine = [beat for beat in beats.values() if beat.host == machine_name() and not beat.has_left]
    return [beat for beat in mine if not beat.stands_still and process_of(beat) is None]


def blame(after: dict[int, Heartbeat], silent: Sequence[int], world_size: int) -> str:
    """Who holds the run up, in one sentence.

    Args:
        after: The latest heartbeats.
        silent: What ``silent_ranks`` found.
        world_size: Number of ranks.
    """
    if silent:
        return "; ".join(_describe_silent(rank, after.get(rank)) for rank in silent[:4]) + _and_more(silent)
    last = min(beat.step for beat in after.values())
    behind = [beat for beat in after.values() if beat.step == last]
    if len(behind) == len(after):
        behind = [beat for beat in after.values() if not beat.waits]
    if 0 < len(behind) < world_size:
        named = "; ".join(f"rank {b.rank} on {b.host} stands after step {b.step} at {b.where}" for b in behind[:4])
        return named + _and_more(behind)
    return f"all {world_size} ranks stand after step {last} ({after[min(after)].doing}) and none stands out"


def _and_more(named: Sequence[object]) -> str:
    return f" and {len(named) - 4} more" if len(named) > 4 else ""


def _describe_silent(rank: int, beat: Heartbeat | None) -> str:
    if beat is None:
        return f"rank {rank} has not said anything since it was started"
    return f"rank {rank} on {beat.host} (pid {beat.pid}) stands after step {beat.step}: {_state(beat)}"


def _state(beat: Heartbeat) -> str:
    process = process_of(beat)
    if beat.host != machine_name():
        return "its process does not run, or its machine is lost"
    if process is None:
        return "its process is gone"
    try:
        stopped = process.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return "its process is gone"
    return "its process is stopped (SIGSTOP)" if stopped else "its process does not answer"


def process_of(beat: Heartbeat) -> psutil.Process | None:
    """The rank's process, if it is one of this machine and still there."""
    if beat.host != machine_name():
        return None
    try:
        process = psutil.Process(beat.pid)
        same = abs(process.create_time() - beat.process_started) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def ask_for_stacks(beats: Sequence[Heartbeat]) -> None:
    """Let silent ranks of this machine write their stacks: faulthandler answers even where Python does not run."""
    for beat in beats:
        process = process_of(beat)
        if process is not None:
            process.send_signal(signal.SIGUSR2)

"""Runs a function on several gloo ranks of this machine, and brings back results or the first failure.

Ranks are forked, so that they inherit what the parent has imported: a test costs tenths of a second, not the
import of torch. The price is that the parent must have no threads that a fork would lose: keep it at one OpenMP
thread, and on a machine with a CUDA device hide it (``CUDA_VISIBLE_DEVICES=``), because autograd starts a thread
per device and refuses to work in a fork afterwards.
"""

import contextlib
import ctypes
import faulthandler
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

POLL_SECONDS = 0.5
"""A rank that died while a process of its own still holds its pipe is noticed within this time."""

GRACE_SECONDS = 0.2
"""After a failure, wait so long for an earlier one: the peers of a crashed rank fail at about the same time."""

EXIT_SECONDS = 20.0
"""Time for leaving the process group, after every rank has returned."""

PR_SET_PDEATHSIG = 1  # prctl(2)


class RankFailed(RuntimeError):
    """A rank died, or failed with something that cannot be raised in the parent as it was."""


class RankHung(TimeoutError):
    """Ranks did not finish in time; the message says which, and where each of them stood."""


@dataclass(frozen=True, slots=True)
class _Report:
    """What a rank sends: a result, or an error with its traceback."""

    at_seconds: float
    """``time.monotonic()``, which is one clock for all processes of a machine."""
    result: Any = None
    error: BaseException | None = None
    trace: str = ""


@dataclass(frozen=True, slots=True)
class _Rank:
    number: int
    process: ForkProcess
    connection: Connection
    stack_file: Path


def run_distributed(
    world_size: int, function: Callable[..., Result], *args: Any, timeout_seconds: float = 120.0
) -> list[Result]:
    """Call ``function(*args)`` on ``world_size`` ranks of a gloo group, each a forked process with one thread.

    A size of 1 goes the same way. ``function`` may be a closure; ``dist.group.WORLD`` is ready inside it. It uses
    no port that a test could collide on: ranks meet over a file in a temporary folder.

    Args:
        world_size: Number of ranks, at least 1.
        function: Run on every rank. What it returns is pickled; tensors travel by value.
        *args: The same for all ranks, inherited, not copied.
        timeout_seconds: For all ranks together, from start to the last result.

    Returns:
        One result per rank, in the order of ranks.

    Raises:
        Exception: The first failure of a rank, of its own type, with a note that names the rank and holds its
            traceback. The other ranks are killed.
        RankFailed: A rank died, or its error or result cannot be pickled.
        RankHung: The time is over. All ranks are killed.
    """
    if world_size < 1:
        raise ValueError(f"world_size = {world_size} must be at least 1")
    name = getattr(function, "__qualname__", repr(function))
    deadline = time.monotonic() + timeout_seconds
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        ranks: list[_Rank] = []
        try:
            _start(ranks, world_size, Path(folder), timeout_seconds, function, args)
            results = _collect(ranks, name, deadline, timeout_seconds)
            _release(ranks, name)
            return results
        finally:
            _kill(ranks)


def _start(
    ranks: list[_Rank],
    world_size: int,
    folder: Path,
    timeout_seconds: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Fork the ranks; each is appended as soon as it lives, so that a failure here leaves none behind."""
    context = multiprocessing.get_context("fork")
    for number in range(world_size):
        ours, theirs = context.Pipe(duplex=True)
        stack_file = folder / f"stack-{number}"
        process = context.Process(
            target=_live,
            args=(number, world_size, folder, timeout_seconds, theirs, stack_file, function, args),
            name=f"rank-{number}",
        )
        process.start()
        theirs.close()  # before the next fork: a sibling that holds it would keep the end of this rank from us
        ranks.append(_Rank(number, process, ours, stack_file))


def _collect(ranks: Sequence[_Rank], name: str, deadline: float, timeout_seconds: float) -> list[Any]:
    """Results in the order of ranks. Read before any join: a rank with a large result waits for its reader."""
    reports: dict[int, _Report] = {}
    while len(reports) < len(ranks):
        left = deadline - time.monotonic()
        fresh = _receive([rank for rank in ranks if rank.number not in reports], min(POLL_SECONDS, max(left, 0.0)))
        reports |= fresh
        if any(report.error for report in fresh.values()):
            reports |= _receive([rank for rank in ranks if rank.number not in reports], GRACE_SECONDS)
            _raise_first(reports, len(ranks), name)
        if left <= 0 and not fresh:
            hung = [rank for rank in ranks if rank.number not in reports]
            raise RankHung(_describe_hang(hung, len(ranks), name, timeout_seconds))
    return [reports[rank.number].result for rank in ranks]


def _receive(ranks: Sequence[_Rank], timeout_seconds: float) -> dict[int, _Report]:
    """Reports that are there or arrive in time, at least those of dead ranks."""
    ready = wait([rank.connection for rank in ranks], timeout_seconds)
    reports = {}
    for rank in ranks:
        if rank.connection in ready:
            reports[rank.number] = _read_report(rank)
        elif not ready and rank.process.exitcode is not None:
            reports[rank.number] = _death_report(rank)
    return reports


def _read_report(rank: _Rank) -> _Report:
    try:
        report = pickle.loads(rank.connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        return _death_report(rank)
    assert isinstance(report, _Report)
    return report


def _death_report(rank: _Rank) -> _Report:
    code = _await_exit(rank, time.monotonic() + EXIT_SECONDS)
    manner = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    # Time 0: the errors of its peers, which saw the connection break, are consequences
    return _Report(0.0, error=RankFailed(f"died without a report ({manner})"))


def _raise_first(reports: dict[int, _Report], world_size: int, name: str) -> None:
    number, first = min(
        ((number, report) for number, report in reports.items() if report.error is not None),
        key=lambda item: item[1].at_seconds,
    )
    assert first.error is not None
    where = f"rank {number} of {world_size} in {name}"
    if isinstance(first.error, RankFailed):
        raise RankFailed(f"{where}: {first.error}\n{first.trace}".rstrip())
    first.error.add_note(f"{where}:\n{first.trace}")
    raise first.error


def _describe_hang(hung: Sequence[_Rank], world_size: int, name: str, timeout_seconds: float) -> str:
    for rank in hung:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank.process.pid or 0, signal.SIGUSR2)  # faulthandler writes the stack, even from inside C++
    numbers = ", ".join(str(rank.number) for rank in hung)
    lines = [f"{name}: rank {numbers} of {world_size} did not finish within {timeout_seconds:g} s"]
    until = time.monotonic() + 1.0
    for rank in hung:
        while not (stack := rank.stack_file.read_text() if rank.stack_file.exists() else ""):
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        inner = stack.partition(f" in {_attempt.__name__}\n")[0].rpartition("\n")[0]  # without the frames that are ours
        lines.append(f"rank {rank.number} stood at:\n{inner or stack or '(unknown: it does not answer signals)'}")
    return "\n".join(lines)


def _release(ranks: Sequence[_Rank], name: str) -> None:
    """Let the ranks leave the group. None leaves before all have returned: gloo breaks peers that still talk."""
    for rank in ranks:
        with contextlib.suppress(BrokenPipeError):  # it died meanwhile: its exit code is looked at below
            rank.connection.send_bytes(b"go")
    deadline = time.monotonic() + EXIT_SECONDS
    for rank in ranks:
        code = _await_exit(rank, deadline)
        if code is None:
            raise RankHung(f"{name}: rank {rank.number} returned, but did not leave its process group")
        if code:
            raise RankFailed(f"{name}: rank {rank.number} returned, then exited with {code}")


def _await_exit(rank: _Rank, deadline: float) -> int | None:
    """Exit code, or None. Not by ``join(timeout)``: that waits for the rank's own children as well."""
    while (code := rank.process.exitcode) is None and time.monotonic() < deadline:
        time.sleep(0.002)
    return code


def _kill(ranks: Sequence[_Rank]) -> None:
    """End the ranks and whatever they started (each leads a process group), and reap them."""
    for rank in ranks:
        assert rank.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.process.pid, signal.SIGKILL)
        rank.process.kill()  # it may not have become the leader of its group yet
    for rank in ranks:
        rank.process.join()
        rank.process.close()
        rank.connection.close()


def _live(
    number: int,
    world_size: int,
    folder: Path,
    timeout_seconds: float,
    connection: Connection,
    stack_file: Path,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """The life of a rank. Never returns: exit handlers inherited from the parent (pytest's) are not ours to run."""
    code = 1
    gc.freeze()  # a collection would write to every object of the parent, and so copy all of its memory
    try:
        os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no orphans when the parent is killed
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host name need not resolve
        with stack_file.open("w") as stack:
            faulthandler.register(signal.SIGUSR2, file=stack)
            report = _attempt(number, world_size, folder, timeout_seconds, function, args)
            connection.send_bytes(_pickled(report))
            connection.recv_bytes()  # all ranks have returned
        if dist.is_initialized():
            dist.destroy_process_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _attempt(
    number: int,
    world_size: int,
    folder: Path,
    timeout_seconds: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> _Report:
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'store'}",
            rank=number,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_seconds + 60),  # the parent's verdict, which has the stacks, comes first
        )
        return _Report(time.monotonic(), result=function(*args))
    except BaseException as error:
        return _Report(time.monotonic(), error=error, trace=traceback.format_exc())


def _pickled(report: _Report) -> bytes:
    """By value. multiprocessing's own pickler would share tensors through this process, which is about to end."""
    if isinstance(report.error, SystemExit | KeyboardInterrupt):
        report = _Report(report.at_seconds, error=RankFailed(f"raised {report.error!r}"), trace=report.trace)
    try:
        data = pickle.dumps(report)
        if report.error is not None:
            pickle.loads(data)  # an exception with arguments of its own can be dumped, but not rebuilt
        return data
    except Exception as problem:
        if report.error is not None:
            text = "raised an exception that cannot be pickled"
        else:
            text = f"returned a {type(report.result).__name__} that cannot be pickled ({problem})"
        return pickle.dumps(_Report(report.at_seconds, error=RankFailed(text), trace=report.trace))

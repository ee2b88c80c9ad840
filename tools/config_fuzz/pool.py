"""Forked workers that judge case after case; one that takes too long or dies is told apart from one that answers."""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

from config_fuzz.cases import Case
from config_fuzz.judge import MOST_SECONDS, Fault, Result, Verdict

Judge = Callable[[Case, Path], Verdict]
MOST_BYTES = 6 * 2**30
"""Memory of a worker: what asks for more is a fault, not an end of the machine."""


@dataclass(slots=True)
class _Worker:
    process: ForkProcess
    connection: Connection
    number: int = -1
    """The case at hand; -1: none."""
    since: float = 0.0


def judge_all(
    make: Callable[[int], Case], numbers: range, judge: Judge, workers: int, most_seconds: float = MOST_SECONDS
) -> Iterator[Verdict]:
    """Verdicts as they come.

    Args:
        make: Makes the case of a number.
        numbers: Of the cases.
        judge: Called in a worker, with an empty folder for each case.
        workers: Processes at a time.
        most_seconds: After these a worker is killed, and its case is slow.
    """
    ahead = iter(numbers)
    team = [_start(make, judge) for _ in range(workers)]
    try:
        for worker in team:
            _give(worker, next(ahead, None))
        while any(worker.number >= 0 for worker in team):
            wait([worker.connection for worker in team if worker.number >= 0], timeout=0.2)
            for place, worker in enumerate(team):
                verdict = _look(worker, most_seconds)
                if verdict is None:
                    continue
                yield verdict
                if not worker.process.is_alive():
                    team[place] = _start(make, judge)
                _give(team[place], next(ahead, None))
    finally:
        for worker in team:
            worker.process.kill()
            worker.process.join()


def _start(make: Callable[[int], Case], judge: Judge) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make, judge), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(connection: Connection, make: Callable[[int], Case], judge: Judge) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    while True:
        number = connection.recv()
        with tempfile.TemporaryDirectory(prefix="fuzz-config-") as folder:
            connection.send(judge(make(number), Path(folder)))


def _give(worker: _Worker, number: int | None) -> None:
    worker.number = -1 if number is None else number
    worker.since = time.monotonic()
    if number is not None:
        worker.connection.send(number)


def _look(worker: _Worker, most_seconds: float) -> Verdict | None:
    """What there is to say of its case; None: nothing yet."""
    if worker.number < 0:
        return None
    try:
        if worker.connection.poll():
            return worker.connection.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        words = f"the worker ended with {worker.process.exitcode}"
        return Verdict(worker.number, Result.REFUSED, words, [Fault.TRACEBACK])
    seconds = time.monotonic() - worker.since
    if seconds <= most_seconds:
        return None
    worker.process.kill()
    worker.process.join()
    return Verdict(worker.number, Result.REFUSED, "killed", [Fault.SLOW], seconds)

"""Signals to a rank: before training they end it, in training the first asks and a second Ctrl-C ends it."""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_launch import exit_codes
from ultramem_launch.ending import Ending, Outcome, read_ending, record_ending, settle
from ultramem_launch.leaving import signals_heard

Body = Callable[[Callable[[], None]], None]


def rank(run_dir: Path, body: Body, *, counts: bool = True) -> tuple[int, str]:
    """Exit status and stderr of a fork that hears signals while it runs ``body``, which would take for ever."""
    hear, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.stderr = os.fdopen(tell, "w")

        def leave(ended: Ending) -> None:
            record_ending(run_dir, ended)
            os._exit(ended.exit_status)

        with signals_heard(0, leave, counts_interrupts=counts) as begins:
            body(begins)
        os._exit(0)
    os.close(tell)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(hear) as said:
        return status, said.read()


def signal_me(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.05)


def hang() -> None:
    """In C, as a collective does: no handler of Python's runs."""
    time.sleep(0.05)
    libc = ctypes.CDLL(None)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        libc.sleep(20)


@pytest.mark.parametrize(
    ("number", "outcome", "status"),
    [
        (signal.SIGINT, Outcome.INTERRUPTED, exit_codes.INTERRUPTED),
        (signal.SIGTERM, Outcome.PREEMPTED, exit_codes.STOPPED),
        (signal.SIGUSR1, Outcome.PREEMPTED, exit_codes.STOPPED),
    ],
)
def test_before_training_a_signal_ends_it_at_once(tmp_path: Path, number: int, outcome: Outcome, status: int) -> None:
    def body(begins: Callable[[], None]) -> None:
        signal_me(number)
        hang()

    assert rank(tmp_path, body)[0] == status
    ending = read_ending(tmp_path)
    assert ending is not None
    assert (ending.outcome, ending.exit_status) == (outcome, status)
    assert "before training began; there was nothing to save" in ending.reason


def test_in_training_the_first_is_confirmed_and_a_second_interrupt_leaves(tmp_path: Path) -> None:
    def body(begins: Callable[[], None]) -> None:
        begins()
        signal_me(signal.SIGINT)
        assert read_ending(tmp_path) is None
        signal_me(signal.SIGINT)
        hang()

    status, said = rank(tmp_path, body)
    assert status == exit_codes.INTERRUPTED
    assert said.startswith("asked to stop by SIGINT: saves after this step, and ends; Ctrl-C once more leaves at once")
    assert json.loads((tmp_path / "status.json").read_text())["exit_status"] == exit_codes.INTERRUPTED


@pytest.mark.parametrize(
    ("numbers", "counts"),
    [
        pytest.param([signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1], True, id="others-may-come-again"),
        pytest.param([signal.SIGINT, signal.SIGINT], False, id="the-launcher-counts"),
    ],
)
def test_what_only_asks(tmp_path: Path, numbers: list[int], counts: bool) -> None:
    def body(begins: Callable[[], None]) -> None:
        begins()
        signal_me(*numbers)

    status, said = rank(tmp_path, body, counts=counts)
    assert status == 0
    assert said.count("asked to stop") == 1
    assert read_ending(tmp_path) is None


@pytest.mark.parametrize(
    ("status", "outcome", "settled"),
    [
        (0, Outcome.FINISHED, 0),
        (exit_codes.STOPPED, Outcome.PREEMPTED, exit_codes.STOPPED),
        (exit_codes.INTERRUPTED, Outcome.INTERRUPTED, exit_codes.INTERRUPTED),
        (137, Outcome.FAILED, 137),
        (134, Outcome.FAILED, 134),
        (exit_codes.HUNG, Outcome.HUNG, exit_codes.HUNG),
        (7, Outcome.FAILED, exit_codes.FAILED),
        (exit_codes.BAD_INPUT, None, exit_codes.BAD_INPUT),
    ],
)
def test_exit_status_and_status_file_agree(tmp_path: Path, status: int, outcome: Outcome | None, settled: int) -> None:
    assert settle(tmp_path, status) == settled
    ending = read_ending(tmp_path)
    assert (ending.outcome if ending else None) is outcome
    if ending is not None:
        assert json.loads((tmp_path / "status.json").read_text())["exit_status"] == settled


def test_what_a_rank_said_is_believed_over_how_another_ended(tmp_path: Path) -> None:
    record_ending(tmp_path, Ending(outcome=Outcome.DIVERGED, reason="loss is NaN", rank=3))
    assert settle(tmp_path, exit_codes.FAILED) == exit_codes.DIVERGED

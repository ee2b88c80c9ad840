"""Ranks of a real run that are stopped or killed: one outcome each, said in the status file."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ultramem_launch import exit_codes
from ultramem_launch.place import PLACE_VARIABLES
from ultramem_megatron.testing.programs import ForkedProgram
from ultramem_megatron.testing.tiny import write_tiny_config

pytestmark = pytest.mark.slow
WAIT_SECONDS = 300.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(warm: None, tmp_path: Path) -> Iterator[Start]:
    """``start(settings...)``: a run of two ranks in ``tmp_path/run``, forked from this process."""
    started: list[subprocess.Popen[str]] = []
    command = [sys.executable, "-m", "ultramem_launch", "pretrain", str(write_tiny_config(tmp_path))]
    environment = {name: value for name, value in os.environ.items() if name not in PLACE_VARIABLES}

    def begin(*settings: str) -> "subprocess.Popen[str]":
        process = ForkedProgram(
            [*command, *settings, "--run-dir", str(tmp_path / "run"), "--local", "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()  # the kernel ends its ranks
        process.communicate()


def wait_for_steps(run_dir: Path, steps: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    metrics = run_dir / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < steps:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "status", "outcome", "words"),
    [
        (signal.SIGSTOP, exit_codes.HUNG, "hung", "stands after step {step}: its process is stopped (SIGSTOP)"),
        (signal.SIGKILL, 128 + signal.SIGKILL, "failed", "rank 1 was killed by SIGKILL (often a lack of memory)"),
    ],
)
def test_one_outcome_each(
    start: Start, tmp_path: Path, number: signal.Signals, status: int, outcome: str, words: str
) -> None:
    limits = ("resilience.hang_seconds=5", "resilience.pause_seconds=200", "training.steps=1000000")
    run = start(*limits, "checkpoint.interval=0", "monitor.memory_interval=1000000")
    wait_for_steps(tmp_path / "run", 2, run)
    ranks = sorted(psutil.Process(run.pid).children(), key=lambda rank: rank.name())
    ranks[1].send_signal(number)
    output, _ = run.communicate(timeout=WAIT_SECONDS)
    assert run.returncode == status, output
    said = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (said["outcome"], said["exit_status"]) == (outcome, status)
    reached = json.loads((tmp_path / "run" / "watchdog" / "rank_00001.json").read_text())["step"]
    assert words.format(step=reached) in said["reason"]
    assert said["reason"] in output
    assert not any(rank.is_running() for rank in ranks)
    if outcome == "hung":
        assert "rank 1 on" in said["reason"]
        assert "run_loop" in (tmp_path / "run" / "watchdog" / "rank_00000.stacks.txt").read_text()

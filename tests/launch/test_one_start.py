"""Real starts on one run folder: at once, one later, after SIGKILL of the holder; and Ctrl-C."""

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

from ultramem_launch.place import PLACE_VARIABLES
from ultramem_megatron.monitor.records import read_records
from ultramem_megatron.testing.tiny import write_tiny_config

pytestmark = pytest.mark.slow
WAIT_SECONDS = 300.0
ENDLESS = ("training.steps=1000000", "checkpoint.interval=0", "monitor.memory_interval=1000000")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(*arguments)``: a run in ``tmp_path/run``."""
    started: list[subprocess.Popen[str]] = []
    command = [sys.executable, "-m", "ultramem_launch", "pretrain", str(write_tiny_config(tmp_path))]
    environment = {name: value for name, value in os.environ.items() if name not in PLACE_VARIABLES}

    def begin(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*command, *arguments, "--run-dir", str(tmp_path / "run")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def wait_for_steps(run_dir: Path, steps: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    metrics = run_dir / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < steps:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status_of(run_dir: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run_dir / "status.json").read_text())
    return found


def test_of_two_starts_at_once_one_trains(start: Start, tmp_path: Path) -> None:
    both = [start("--local", "2"), start()]
    said = [process.communicate(timeout=WAIT_SECONDS) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    loser = next(index for index, process in enumerate(both) if process.returncode == 2)
    assert "RunHeldError: --run-dir" in said[loser][1]
    assert said[loser][1].count("\n") == 1
    run = tmp_path / "run"
    assert [record["step"] for record in read_records(run / "metrics.jsonl")] == list(range(1, 9))
    assert (status_of(run)["outcome"], status_of(run)["exit_status"]) == ("finished", 0)
    assert not (run / "lock.json").exists()


def test_a_later_start_is_refused_until_the_holder_is_killed(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(*ENDLESS, "checkpoint.interval=2")
    wait_for_steps(run, 3)
    held = (run / "lock.json").read_bytes()
    second = start()
    _, said = second.communicate(timeout=WAIT_SECONDS)
    assert (second.returncode, f"is in use by process {first.pid} on" in said) == (2, True), said
    assert (run / "lock.json").read_bytes() == held
    assert not (run / "status.json").exists()
    first.kill()
    first.communicate()
    last = max(int(one.name.removeprefix("step_")) for one in (run / "checkpoints").glob("step_*"))
    third = start(f"training.steps={last + 4}")
    output, said = third.communicate(timeout=WAIT_SECONDS)
    assert third.returncode == 0, said
    assert "took over from process" in said
    assert "resumed from" in output
    steps = [record["step"] for record in read_records(run / "metrics.jsonl")]
    assert steps == list(range(1, last + 5))
    left = [path.name for path in run.rglob(".*") if path.name != ".metadata"]
    assert left == [], "of the killed start"


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_interrupt_saves_and_says_so(start: Start, tmp_path: Path, processes: int) -> None:
    run = tmp_path / "run"
    local = ("--local", "2") if processes == 2 else ()
    process = start(*ENDLESS, *local)
    wait_for_steps(run, 2)
    everyone = [process.pid, *(child.pid for child in psutil.Process(process.pid).children())]
    for pid in everyone[:1] if processes == 1 else everyone:  # as a terminal does
        os.kill(pid, signal.SIGINT)
    _, said = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 75, said
    assert said.count("asked to stop by SIGINT: saves after this step, and ends; Ctrl-C once more leaves at once") == 1
    ending = status_of(run)
    assert (ending["outcome"], ending["exit_status"]) == ("preempted", 75)
    assert ending["reason"] == "asked to stop by SIGINT; saved, and the same command goes on"
    newest = (run / "checkpoints" / "latest").read_text().strip()
    steps = [record["step"] for record in read_records(run / "metrics.jsonl")]
    assert newest == f"step_{int(steps[-1]):08d}"
    assert not (run / "lock.json").exists()

"""Runs that are killed at any moment, through the command line: started again, they end as if nothing had been."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ultramem_megatron.testing.budget import budget
from ultramem_megatron.testing.programs import ForkedProgram
from ultramem_megatron.testing.tiny import write_tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(torch.cuda.is_available(), reason="two ranks of the CPU backend"),
]

STEPS = budget(20, 32)
INTERVAL = 5
SETTINGS = (
    f"training.steps={STEPS}",
    f"checkpoint.interval={INTERVAL}",
    *(
        "memory.partition=number_wise",
        "memory.parallel_size=2",
        f"training.eval_interval={STEPS // 2}",
        "training.eval_batches=1",
    ),
)
WAIT_SECONDS = 180.0
POLL_SECONDS = 0.002
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def run(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``run(run_dir)``: starts the command, as a fork of this process unless told otherwise.

    Its output goes to a file, which processes it leaves cannot keep open.
    """
    import_module("ultramem_launch.__main__")  # once, for all forks
    config = write_tiny_config(tmp_path_factory.mktemp("config"))
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}

    def start(run_dir: Path, program: type["subprocess.Popen[Any]"] = ForkedProgram) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "ultramem_launch", "pretrain", str(config), *SETTINGS]
        with (run_dir.parent / f"{run_dir.name}.log").open("a") as log:
            return program(
                [*command, "--run-dir", str(run_dir), "--local", "2"],
                env={**environment, "PYTHONWARNINGS": "ignore"},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    return start


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, ...]]:
    """The curve of a run that nobody touched, and whose launcher was an interpreter of its own."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(run_dir, subprocess.Popen).wait(WAIT_SECONDS) == 0, log_of(run_dir)
    return curve(run_dir)


def log_of(run_dir: Path) -> str:
    return (run_dir.parent / f"{run_dir.name}.log").read_text()


def curve(run_dir: Path) -> list[tuple[float, ...]]:
    names = ("step", "train/loss", "train/gradient_norm", "train/learning_rate", "train/value_learning_rate")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    return [tuple(record[name] for name in names) for record in written]


def ranks_of(launcher: "subprocess.Popen[str]") -> list[int]:
    """Process ids in the order of ranks."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return sorted(map(int, children))


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(POLL_SECONDS)


def steps_written(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def wait_for_step(run_dir: Path, step: int, launcher: "subprocess.Popen[str]") -> None:
    def is_there() -> bool:
        assert launcher.poll() is None, f"the run ended before step {step}:\n{log_of(run_dir)}"
        return steps_written(run_dir) >= step

    wait_until(is_there, f"step {step} did not come")


def kill_launcher(launcher: "subprocess.Popen[str]", ranks: list[int]) -> int:
    launcher.kill()
    return launcher.wait()


def kill_rank(launcher: "subprocess.Popen[str]", ranks: list[int]) -> int:
    os.kill(ranks[1], signal.SIGKILL)
    return launcher.wait(WAIT_SECONDS)


def ask_to_stop(launcher: "subprocess.Popen[str]", ranks: list[int]) -> int:
    launcher.send_signal(signal.SIGTERM)
    return launcher.wait(WAIT_SECONDS)


End = Callable[["subprocess.Popen[str]", list[int]], int]
STATUSES: dict[End, int] = {kill_launcher: -signal.SIGKILL, kill_rank: 128 + signal.SIGKILL, ask_to_stop: 75}


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_it_ends_as_if_nothing_had_been(run: Run, undisturbed: list[tuple[float, ...]], tmp_path: Path) -> None:
    """A rank is killed, the next start is asked to stop, the launcher of the one after is killed, the last finishes."""
    ends: list[End] = [kill_rank, ask_to_stop, kill_launcher]
    seed = int(os.environ.get("RESUME_TEST_SEED", random.SystemRandom().randrange(10**6)))
    draw = random.Random(seed)
    run_dir = tmp_path / "run"
    window = (STEPS - 8) // len(ends)
    for number, end in enumerate(ends):
        step, moment = draw.randrange(1 + number * window, 1 + (number + 1) * window), draw.uniform(0, 0.05)
        print(f"RESUME_TEST_SEED={seed}: {end.__name__} {moment:.3f} s after step {step}")  # shown when the test fails
        end_early(run, run_dir, step, moment, end)

    assert run(run_dir).wait(WAIT_SECONDS) == 0, log_of(run_dir)
    joined = curve(run_dir)
    assert [row[0] for row in joined] == list(range(1, STEPS + 1))
    assert joined == undisturbed
    left = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert left == ["latest", f"step_{(STEPS - 1) // INTERVAL * INTERVAL:08d}", f"step_{STEPS:08d}"]


def end_early(run: Run, run_dir: Path, step: int, moment: float, end: End) -> None:
    """Start the run, and end it ``moment`` seconds after ``step``, but not before it has taken a step of its own."""
    step = max(step, steps_written(run_dir) + 1)
    launcher = run(run_dir)
    wait_for_step(run_dir, step, launcher)
    ranks = ranks_of(launcher)
    assert len(ranks) == 2
    time.sleep(moment)
    assert end(launcher, ranks) == STATUSES[end], log_of(run_dir)
    wait_until(lambda: not any(map(is_alive, ranks)), "ranks outlive their launcher")

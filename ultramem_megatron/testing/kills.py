"""Runs that are killed and started again, compared bit for bit with one that nobody touched.

Used by ``tools/kill_and_resume``. Runs are started through the command line, as a user would, on this machine's CPU.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from ultramem_megatron.checkpoint.manifest import MANIFEST
from ultramem_megatron.checkpoint.store import LATEST, checkpoint_folders, step_folder, unfinished_folders

WAIT_SECONDS = 300.0
POLL_SECONDS = 0.002
ATTEMPTS = 5
"""A kill that comes too late is tried again on a new run so often."""

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_COMPARED = ("step", "train/loss", "train/gradient_norm", "train/learning_rate")


class Moment(StrEnum):
    """What a run does when it is killed."""

    STEP = "step"
    SAVE = "save"


class Phase(StrEnum):
    """Where a run was when it was killed, as the files that it left show."""

    TRAINING = "training"
    """No save was under way."""
    COPY = "copy"
    """A save had begun, and no shard had been written to."""
    WRITE = "write"
    """Shards were being written."""
    PUBLISH = "publish"
    """All shards were there; manifest, rename, pointer or the removal of old ones was not done."""


class Victim(StrEnum):
    """Who is killed; the others of the run end with it."""

    LAUNCHER = "launcher"
    RANK = "rank"


@dataclass(frozen=True, slots=True)
class Job:
    """What all runs do."""

    settings: tuple[str, ...]
    """CONFIG and its overrides."""
    ranks: int
    steps: int
    interval: int
    """Steps between saves."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What a run left behind that is the same for all that went well."""

    curve: list[tuple[float, ...]]
    """Step, loss, gradient norm, learning rate."""
    digests: dict[str, str]
    """Of every tensor of the last checkpoint, weights and optimizer."""


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A run that nobody touched."""

    ending: Ending
    save_seconds: float
    """Mean time that a checkpoint was being written."""


@dataclass(frozen=True, slots=True)
class Killed:
    """A run that was killed once and started again."""

    number: int
    phase: Phase
    victim: Victim
    after_step: int
    """Last step that it had reported."""
    resumed_from: int
    """Step of the checkpoint that it went on from; 0 at the start."""
    seconds: float
    difference: str
    """From the undisturbed run; empty if every number is the same."""


def run_undisturbed(job: Job, folder: Path) -> Undisturbed:
    """Train to the end, and watch how long saves take."""
    run_dir = folder / "undisturbed"
    started = _start(job, run_dir)
    saving = []
    while started.poll() is None:
        saving.append((time.monotonic(), _is_saving(run_dir)))
        time.sleep(POLL_SECONDS)
    _require_success(started, run_dir)
    spent = sum(b - a for (a, busy), (b, _) in pairwise(saving) if busy)
    return Undisturbed(ending_of(run_dir, job.steps), spent / (job.steps // job.interval))


def kill_and_resume(
    job: Job, undisturbed: Undisturbed, moment: Moment, folder: Path, number: int, draw: random.Random
) -> Killed:
    """Start a run, kill it, start it again, and compare what it leaves behind.

    Raises:
        TimeoutError: A run hangs.
        RuntimeError: It failed, or could not be killed at the moment asked for.
    """
    start = time.monotonic()
    for attempt in range(ATTEMPTS):
        run_dir = folder / f"killed-{number}-{attempt}"
        victim = draw.choice(list(Victim))
        if phase := _kill_once(job, undisturbed, moment, victim, run_dir, draw):
            break
    else:
        raise RuntimeError(f"run {number} could not be killed during a {moment} in {ATTEMPTS} attempts")
    after_step = len(curve_of(run_dir))
    _require_success(_start(job, run_dir), run_dir)
    resumed = re.findall(r"resumed from .*: step (\d+) of", _log(run_dir))
    return Killed(
        number,
        phase,
        victim,
        after_step,
        int(resumed[-1]) if resumed else 0,
        time.monotonic() - start,
        difference(ending_of(run_dir, job.steps), undisturbed.ending),
    )


def _kill_once(
    job: Job, undisturbed: Undisturbed, moment: Moment, victim: Victim, run_dir: Path, draw: random.Random
) -> Phase | None:
    """Where the run was killed; None if it was not, or not at such a moment."""
    launcher = _start(job, run_dir)
    if moment is Moment.SAVE:
        step = job.interval * draw.randrange(1, job.steps // job.interval)
        _wait_until(lambda: _is_saving(run_dir, step) or launcher.poll() is not None, f"{run_dir}: no save of {step}")
        time.sleep(draw.uniform(0, undisturbed.save_seconds))
    else:
        step = draw.randrange(1, job.steps)
        _wait_until(lambda: len(curve_of(run_dir)) >= step or launcher.poll() is not None, f"{run_dir}: no step {step}")
        time.sleep(draw.uniform(0, 0.1))
    ranks = _children(launcher.pid)
    killed = len(ranks) == job.ranks and launcher.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.kill(launcher.pid if victim is Victim.LAUNCHER or not killed else draw.choice(ranks), signal.SIGKILL)
    launcher.wait(WAIT_SECONDS)
    _wait_until(lambda: not any(map(_is_alive, ranks)), f"{run_dir}: ranks outlive their launcher")
    phase = phase_of(run_dir / "checkpoints")
    return phase if killed and (moment is Moment.STEP or phase is not Phase.TRAINING) else None


def phase_of(root: Path) -> Phase:
    """What a killed run was doing with its folder of checkpoints."""
    unfinished = unfinished_folders(root)
    names = {path.name for folder in unfinished for path in folder.iterdir()}
    newest = [folder.name for folder in checkpoint_folders(root)[:1]]
    latest = root / LATEST
    if {".metadata", MANIFEST} & names or newest != (latest.read_text().split() if latest.is_file() else []):
        return Phase.PUBLISH
    if any(name.endswith(".distcp") for name in names):
        return Phase.WRITE
    return Phase.COPY if unfinished else Phase.TRAINING


def _start(job: Job, run_dir: Path) -> "subprocess.Popen[bytes]":
    settings = [*job.settings, f"training.steps={job.steps}", f"checkpoint.interval={job.interval}"]
    command = [sys.executable, "-m", "ultramem_launch", "pretrain", *settings, "monitor.log_interval=1"]
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHER_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with run_dir.with_suffix(".log").open("ab") as log:  # a file: processes left behind cannot keep it from us
        return subprocess.Popen(
            [*command, "--run-dir", str(run_dir), "--local", str(job.ranks)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _require_success(process: "subprocess.Popen[bytes]", run_dir: Path) -> None:
    if status := process.wait(WAIT_SECONDS):
        raise RuntimeError(f"{run_dir} ended with status {status}:\n{_log(run_dir)[-3000:]}")


def _log(run_dir: Path) -> str:
    return run_dir.with_suffix(".log").read_text(errors="replace")


def _is_saving(run_dir: Path, step: int | None = None) -> bool:
    root = run_dir / "checkpoints"
    return any(step is None or step_folder(root, step).name in folder.name for folder in unfinished_folders(root))


def curve_of(run_dir: Path) -> list[tuple[float, ...]]:
    """Step, loss, gradient norm and rate of every step that a run has reported."""
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [tuple(record[name] for name in _COMPARED) for record in records if "train/loss" in record]


def ending_of(run_dir: Path, steps: int) -> Ending:
    """What a run of so many steps has left behind."""
    manifest = json.loads((run_dir / "checkpoints" / f"step_{steps:08d}" / "manifest.json").read_text())
    return Ending(curve_of(run_dir), {name: entry["digest"] for name, entry in manifest["digests"].items()})


def difference(ours: Ending, theirs: Ending) -> str:
    """The first thing in which two runs differ; empty if every number is the same."""
    for mine, other in zip(ours.curve, theirs.curve, strict=False):
        if mine != other:
            return f"step {other[0]:g}: {mine} instead of {other}"
    if len(ours.curve) != len(theirs.curve):
        return f"{len(ours.curve)} steps reported instead of {len(theirs.curve)}"
    names = sorted(set(ours.digests) | set(theirs.digests))
    differing = [name for name in names if ours.digests.get(name) != theirs.digests.get(name)]
    return f"{len(differing)} tensors differ, the first is {differing[0]}" if differing else ""


def _children(pid: int) -> Sequence[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {WAIT_SECONDS:g} s")
        time.sleep(POLL_SECONDS)

"""A section of the check: what it is told, what it finds, and how it runs a program with a time limit."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = [str(REPOSITORY / folder) for folder in ("", "kernels", "launch")]
LAST_WORDS = 15  # lines of a failed program that are kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a section is told."""

    device: str
    folder: Path
    """For the section alone; removed afterwards."""
    steps: int
    layer_sizes: Sequence[str]
    deadline: float
    """``time.monotonic()`` at which its programs are ended."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a section found; sound when there is no problem."""

    facts: dict[str, Any]
    problems: list[str]
    summary: str = ""


class SectionFailed(Exception):
    """A section's program did not run to its end; says why."""


def run_program(task: Task, *command: str | Path, accept: Sequence[int] = (0,)) -> None:
    """Run Python on ``command`` in the repository's root until the deadline; it and all it started end then.

    Raises:
        SectionFailed: Another exit status than those accepted, or the time is over; with its last words.
    """
    words = [sys.executable, *map(str, command)]
    log = task.folder / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, cwd=REPOSITORY, env=environment(task.device), stdout=output, stderr=output, start_new_session=True
        )
        try:
            status: int | None = process.wait(max(0.0, task.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status not in accept:
        how = "did not end in time" if status is None else f"ended with exit status {status}"
        last = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_WORDS:])
        raise SectionFailed(f"{Path(words[1]).name} {' '.join(words[2:4])} {how}; its last words:\n{last}")


def environment(device: str) -> dict[str, str]:
    """The source folders ahead of what is installed; no GPU in sight when the CPU is asked for."""
    path = [*SOURCES, *filter(None, [os.environ.get("PYTHONPATH")])]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "ignore", **hidden}

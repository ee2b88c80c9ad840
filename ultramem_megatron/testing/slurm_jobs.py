"""Jobs on a local Slurm (``slurm/dev-cluster``), as a user starts and watches them: through commands and files.

Used by ``tests/slurm/`` and ``tools/slurm_faults``; both need a checkout.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ultramem_megatron.monitor.records import read_records

ROOT = Path(__file__).parents[2]
DEV_CLUSTER = ROOT / "slurm" / "dev-cluster"
INJECTED = Path(__file__).parent / "injected"
JOB_SECONDS = 560.0
"""Many times what a quiet machine needs."""
POLL_SECONDS = 0.1
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
NOT_A_CLUSTER = 2
"""Exit status of ``dev-cluster`` where no cluster can be had."""


@dataclass(frozen=True, slots=True)
class Slurm:
    """The cluster whose state is in ``root``."""

    root: Path
    site: Path = Path(os.devnull)
    """Site file of all jobs."""

    @property
    def environment(self) -> dict[str, str]:
        """Of every command; faults are put in by it (``injected/sitecustomize.py``)."""
        code = [str(INJECTED), str(ROOT), str(ROOT / "kernels"), str(ROOT / "launch")]
        return {
            **os.environ,
            "SLURM_CONF": str(self.root / "etc" / "slurm.conf"),
            "PYTHONPATH": os.pathsep.join(code),
            "PYTHONWARNINGS": "ignore",
            "ULTRAMEM_SITE": str(self.site),
        }

    def dev_cluster(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """``slurm/dev-cluster ARGUMENTS`` of this cluster."""
        command = [sys.executable, str(DEV_CLUSTER), "--root", str(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)

    def call(self, *command: str) -> str:
        """What a client of Slurm prints.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        return subprocess.run(
            command, capture_output=True, text=True, timeout=100, env=self.environment, check=True
        ).stdout

    def ultramem(self, *arguments: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
        """``ultramem ARGUMENTS``, with ``variables`` in its environment."""
        command = [sys.executable, "-m", "ultramem_launch", *arguments]
        environment = self.environment | variables
        return subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, cwd=cwd)

    def submit(self, config: Path, settings: tuple[str, ...], run_dir: Path, *options: str, **variables: str) -> str:
        """A job of CPU ranks. Returns its id.

        Raises:
            RuntimeError: It was refused.
        """
        arguments = ["submit", str(config), *settings, "--run-dir", str(run_dir), "--json"]
        done = self.ultramem(*arguments, *options, cwd=config.parent, **variables)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return str(json.loads(done.stdout)["jobs"][0])

    def wait_for(self, job: str, run_dir: Path) -> dict[str, str]:
        """What Slurm says of the job when it is over."""

        def is_over() -> bool:
            state = self.call("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T").strip()
            return state in OVER

        wait_until(is_over, run_dir, poll_seconds=0.3)
        words = self.call("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def rank_process(self, job: str, rank: int) -> psutil.Process:
        """Of a job that runs, found by what Slurm has told it.

        Raises:
            RuntimeError: There is none.
        """
        mine = {"SLURM_CONF": self.environment["SLURM_CONF"], "SLURM_JOB_ID": job, "SLURM_PROCID": str(rank)}
        for process in psutil.process_iter():
            try:
                parent = process.parent()
                # a rank's own helpers have its variables, too
                is_task = parent is not None and parent.name().startswith("slurmstepd")
                told = process.environ() if is_task else {}
                # the batch script calls itself task 0, but is of no step
                if mine.items() <= told.items() and "SLURM_STEP_ID" in told:
                    return process
            except psutil.Error:  # it has just ended
                continue
        raise RuntimeError(f"job {job} has no rank {rank} on this machine")


def wait_until(condition: Callable[[], object], run_dir: Path, poll_seconds: float = POLL_SECONDS) -> None:
    """Return when it is true.

    Raises:
        TimeoutError: It did not become true, with the logs of the run.
    """
    deadline = time.monotonic() + JOB_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not happen in {JOB_SECONDS:.0f} s\n{logs_of(run_dir)}")
        time.sleep(poll_seconds)


def logs_of(run_dir: Path) -> str:
    """The ends of all logs of a job: what a failure must show."""
    files = sorted((run_dir / "logs").glob("*.log"))
    return "\n".join(f"==> {file.name}\n{file.read_text(errors='replace')[-4000:]}" for file in files)


def attempts_of(run_dir: Path) -> list[dict[str, Any]]:
    """Every start of the job; none before the first."""
    file = run_dir / "job" / "attempts.json"
    return json.loads(file.read_text()) if file.is_file() else []


def status_of(run_dir: Path) -> dict[str, Any]:
    """What the run says of its end; empty while it says nothing."""
    try:
        return dict(json.loads((run_dir / "status.json").read_text()))
    except FileNotFoundError:  # at any moment the next start takes it away
        return {}


def newest_step(run_dir: Path) -> int:
    """Reported by the run."""
    file = run_dir / "metrics.jsonl"
    return max((int(record["step"]) for record in read_records(file)), default=0) if file.exists() else 0


def first_free_port(first: int, last: int, nodes: int = 2) -> int:
    """Of ``first``, ``first`` + 1000, ... one at which a cluster finds its ports free.

    Raises:
        RuntimeError: There is none.
    """
    for port in range(first, last, 1000):
        try:
            for one in (port, *(port + 11 + node for node in range(nodes))):
                socket.create_server(("127.0.0.1", one)).close()
        except OSError:
            continue
        return port
    raise RuntimeError(f"no free ports from {first} to {last}")

"""A real Slurm for the tests of this folder, and one undisturbed run that the jobs on it are compared with."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ultramem_megatron.monitor.records import read_records
from ultramem_megatron.testing.tiny import write_tiny_config

ROOT = Path(__file__).parents[2]
DEV_CLUSTER = ROOT / "slurm" / "dev-cluster"
FAULTS = Path(__file__).parent / "faults"
STEPS = 120
SETTINGS = (f"training.steps={STEPS}", "training.global_batch_size=8", "checkpoint.interval=20")
JOB_SECONDS = 280.0  # many times what a quiet machine needs
COMPARED = ("step", "train/", "communication/")
"""Beginnings of the names of metrics that must be equal: not times, and not what is counted since the last report."""


@dataclass
class Slurm:
    """The cluster, as a user meets it: through commands."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        code = [str(FAULTS), str(ROOT), str(ROOT / "kernels"), str(ROOT / "launch")]
        return {
            **os.environ,
            "SLURM_CONF": str(self.root / "etc" / "slurm.conf"),
            "PYTHONPATH": os.pathsep.join(code),
            "PYTHONWARNINGS": "ignore",
            "ULTRAMEM_SITE": os.devnull,
        }

    def dev_cluster(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(DEV_CLUSTER), "--root", str(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)

    def call(self, *command: str) -> str:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=100, env=self.environment, check=True
        ).stdout

    def ultramem(self, *arguments: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "ultramem_launch", *arguments]
        environment = self.environment | variables
        return subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, cwd=cwd)

    def submit(self, config: Path, run_dir: Path, *options: str, **variables: str) -> str:
        """The job's id."""
        arguments = ["submit", str(config), *SETTINGS, "--run-dir", str(run_dir), "--tasks-per-node", "2", "--json"]
        done = self.ultramem(*arguments, *options, cwd=config.parent, **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["jobs"][0]

    def wait_until(self, condition: Callable[[], object], run_dir: Path) -> None:
        deadline = time.monotonic() + JOB_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen in time\n{logs_of(run_dir)}"
            time.sleep(0.3)

    def wait_for(self, job: str, run_dir: Path) -> dict[str, str]:
        """What Slurm says of the job when it is over."""

        def is_over() -> bool:
            state = self.call("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T").strip()
            return state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

        self.wait_until(is_over, run_dir)
        words = self.call("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)


def logs_of(run_dir: Path) -> str:
    """All logs of a job: what a failed assertion must show."""
    files = sorted((run_dir / "logs").glob("*.log"))
    return "\n".join(f"==> {file.name}\n{file.read_text()[-4000:]}" for file in files)


def attempts_of(run_dir: Path) -> list[dict[str, Any]]:
    return json.loads((run_dir / "job" / "attempts.json").read_text())


def numbers_of(run_dir: Path) -> list[dict[str, float]]:
    """Every record of a run, as far as two runs must agree."""
    return [
        {name: value for name, value in record.items() if name.startswith(COMPARED)}
        for record in read_records(run_dir / "metrics.jsonl")
    ]


def newest_step(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return max((int(record["step"]) for record in read_records(file)), default=0) if file.exists() else 0


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Two nodes. Skips, with the reason, where they cannot be had."""
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    waits = ("--dead-after", "20", "--requeue-wait", "15")
    started = cluster.dev_cluster("up", "--no-install", "--port", str(_free_port()), *waits)
    try:
        if started.returncode == 2:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        yield cluster
    finally:
        cluster.dev_cluster("down")


def _free_port() -> int:
    # each worker of pytest-xdist has blocks of its own: two that look at the same time would find the same one free
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    for first in range(18000 + 3000 * worker, 21000 + 3000 * worker, 1000):
        try:
            for port in (first, first + 11, first + 12):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def undisturbed(slurm: Slurm, config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The records of the same run, started with ``--local 4``."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = slurm.ultramem("pretrain", str(config), *SETTINGS, "--run-dir", str(run_dir), "--local", "4", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    records = numbers_of(run_dir)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return records

"""A real Slurm for the tests of this folder, and one undisturbed run that the jobs on it are compared with."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ultramem_megatron.monitor.records import read_records
from ultramem_megatron.testing.slurm_jobs import NOT_A_CLUSTER, ROOT, Slurm, first_free_port
from ultramem_megatron.testing.tiny import write_tiny_config

STEPS = 60
SETTINGS = (f"training.steps={STEPS}", "training.global_batch_size=8", "checkpoint.interval=10")
COMPARED = ("step", "train/", "communication/")
"""Beginnings of the names of metrics that must be equal: not times, and not what is counted since the last report."""


def numbers_of(run_dir: Path) -> list[dict[str, float]]:
    """Every record of a run, as far as two runs must agree."""
    return [
        {name: value for name, value in record.items() if name.startswith(COMPARED)}
        for record in read_records(run_dir / "metrics.jsonl")
    ]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Two nodes. Skips, with the reason, where they cannot be had."""
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    waits = ("--dead-after", "20", "--requeue-wait", "15")
    started = cluster.dev_cluster("up", "--no-install", "--port", str(_free_port()), *waits)
    try:
        if started.returncode == NOT_A_CLUSTER:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        yield cluster
    finally:
        cluster.dev_cluster("down")


def _free_port() -> int:
    # each worker of pytest-xdist has blocks of its own: two that look at the same time would find the same one free
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    return first_free_port(18000 + 3000 * worker, 21000 + 3000 * worker)


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def import_seconds(slurm: Slurm) -> float:
    """Until a process of this machine, as busy as it is, could begin to train: each rank of a job takes as long."""
    begin = time.monotonic()
    command = [sys.executable, "-c", "import ultramem_megatron.training.pretrain"]
    subprocess.run(command, cwd=ROOT, env=slurm.environment, check=True)
    return time.monotonic() - begin


@pytest.fixture(scope="session")
def undisturbed(slurm: Slurm, config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The records of the same run, started with ``--local 4``."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = slurm.ultramem("pretrain", str(config), *SETTINGS, "--run-dir", str(run_dir), "--local", "4", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    records = numbers_of(run_dir)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return records

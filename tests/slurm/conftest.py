"""A program that plays the scenarios of this folder beside all other tests, and what each left behind."""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ultramem_megatron.child import die_with_parent
from ultramem_megatron.monitor.records import read_records
from ultramem_megatron.testing.programs import run_forked
from ultramem_megatron.testing.slurm_jobs import ROOT
from ultramem_megatron.testing.tiny import write_tiny_config

from .scenarios import ENDED, NO_CLUSTER, SCENARIOS, SETTINGS, STEPS

COMPARED = ("step", "train/", "communication/")
"""Beginnings of the names of metrics that must be equal: not times, and not what is counted since the last report."""
POLL_SECONDS = 0.2
PLAYS = pytest.StashKey[subprocess.Popen[bytes]]()


def shared_folder() -> Path:
    """The same for all workers of this run of the tests, and for no other."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    return Path(tempfile.gettempdir()) / f"ultramem-jobs-{os.getuid()}" / run


def scenario_of(item: pytest.Item) -> str:
    """By the name of the test."""
    return item.name.removeprefix("test_")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Jobs mostly wait: one worker starts them now, and whoever comes to their tests later finds them ended."""
    names = [scenario_of(item) for item in session.items if item.path.parent == Path(__file__).parent]
    is_first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    if not names or not is_first or session.config.option.collectonly:
        return
    folder = shared_folder()
    folder.mkdir(parents=True)
    code = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "launch")])
    with (folder / "output").open("wb") as output:
        session.config.stash[PLAYS] = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("scenarios.py")), str(folder), *names],
            env={**os.environ, "PYTHONPATH": code},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=functools.partial(die_with_parent, os.getpid(), signal.SIGTERM),
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The cluster goes down before the worker that started it."""
    plays = session.config.stash.get(PLAYS, None)
    if plays is not None:
        if session.shouldfail or session.shouldstop:
            plays.terminate()
        plays.wait()


@dataclass(frozen=True)
class Ended:
    """A scenario that is over."""

    run_dir: Path
    facts: dict[str, Any]

    def log(self, start: int | None = None) -> str:
        """Of the job, or of one of its starts."""
        name = self.facts["job"] if start is None else f"{self.facts['job']}.{start}"
        return (self.run_dir / "logs" / f"{name}.log").read_text()


@pytest.fixture(scope="session")
def jobs(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where the scenarios leave what they did; kept when a test failed."""
    folder = shared_folder()
    yield folder
    if not request.session.testsfailed:
        for name in SCENARIOS:
            subprocess.run(["rm", "-rf", folder / name], check=False)


@pytest.fixture
def ended(jobs: Path, request: pytest.FixtureRequest) -> Ended:
    """The scenario of the test's name. Skips, with the reason, where there is no Slurm."""
    name = scenario_of(request.node)
    while not (jobs / name / ENDED).exists():
        if (jobs / NO_CLUSTER).exists():
            reason = (jobs / NO_CLUSTER).read_text()
            assert not reason.startswith("broken: "), reason
            pytest.skip(reason)
        time.sleep(POLL_SECONDS)
    facts = json.loads((jobs / name / ENDED).read_text())
    assert not facts["problem"], facts["problem"]
    return Ended(Path(facts["run_dir"]), facts)


Records = list[dict[str, float]]


def numbers_of(run_dir: Path) -> Records:
    """Every record of a run, as far as two runs must agree."""
    return [
        {name: value for name, value in record.items() if name.startswith(COMPARED)}
        for record in read_records(run_dir / "metrics.jsonl")
    ]


@pytest.fixture(scope="session")
def undisturbed(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Records]:
    """``undisturbed(ranks)``: the records of the same run, started with ``--local``."""

    @functools.cache
    def train(ranks: int) -> Records:
        folder = tmp_path_factory.mktemp("undisturbed")
        words = ["pretrain", str(write_tiny_config(folder)), *SETTINGS, "--run-dir", str(folder / "run")]
        command = [sys.executable, "-m", "ultramem_launch", *words, "--local", str(ranks)]
        done = run_forked(command, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        records = numbers_of(folder / "run")
        assert [record["step"] for record in records] == list(range(1, STEPS + 1))
        return records

    return train

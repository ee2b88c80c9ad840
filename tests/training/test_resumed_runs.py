"""Whole runs that go on with other settings: what they print, write down and do."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import DivergedError
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.settings import REPORTED
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA"),
]


@pytest.fixture(scope="module")
def imported(megatron: ModuleType) -> None:

    import ultramem_megatron.training.pretrain  # noqa: F401  # once, before the forks


def run(config: RunConfig, run_dir: Path) -> tuple[str, str]:
    """How it ended, and what it printed."""
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.training.pretrain import pretrain

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        outcome = pretrain(config, choose_plan(config, local_cluster(1)), run_dir, torch.device("cpu"))
    return outcome.value, printed.getvalue()


def start(run_dir: Path, *overrides: str) -> tuple[str, str]:
    ((outcome, printed),) = run_distributed(1, run, tiny_config(*overrides), run_dir)
    return outcome, printed


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def changes_written(run_dir: Path) -> dict[str, tuple[Any, Any, bool]]:
    events = [event for event in lines_of(run_dir / "events.jsonl") if event["event"] == "changed_setting"]
    return {event["field"]: (event["old"], event["new"], event["takes_effect"]) for event in events}


def test_saving_and_reporting(imported: None, tmp_path: Path) -> None:
    """A run that goes on with all of ``REPORTED`` changed."""
    run_dir, fewer = tmp_path / "run", tmp_path / "fewer"
    assert start(run_dir, "training.stop_after=4")[0] == "stopped"
    assert not (run_dir / "events.jsonl").exists()
    shutil.copytree(run_dir, fewer)
    now = ("training.stop_after=7", "training.eval_interval=1", "checkpoint.interval=1", "checkpoint.keep=3")
    now = (*now, "monitor.log_interval=3", "monitor.memory_interval=1", "model.init_std=0.5")
    outcome, printed = start(run_dir, *now)
    assert outcome == "stopped"
    assert sorted(path.name for path in (run_dir / "checkpoints").glob("step_*")) == [
        f"step_{step:08d}" for step in (5, 6, 7)
    ]
    after = lines_of(run_dir / "metrics.jsonl")[4:]
    assert [record["step"] for record in after] == [5, 6, 7]
    assert all("validation/loss" in record and "memory/resident_bytes" in record for record in after)
    assert [line.split("|")[0].split()[-1] for line in printed.splitlines() if "| lr" in line] == ["5/8", "6/8"]
    written = changes_written(run_dir)
    assert written.keys() == {*(setting.partition("=")[0] for setting in now)}
    assert written.keys() == REPORTED - {"training.eval_batches"} | {"model.init_std"}
    assert written["training.stop_after"] == (4, 7, True)
    assert written["model.init_std"] == (0.02, 0.5, False)
    assert printed.count("checkpoint.keep = 3 from here on, 2 before") == 1
    assert printed.count("model.init_std = 0.5 instead of 0.02 has no effect: weights come from the checkpoint") == 1
    start(fewer, *now, "training.eval_batches=1")
    assert lines_of(fewer / "metrics.jsonl")[4]["validation/loss"] != after[0]["validation/loss"]
    before = (run_dir / "events.jsonl").read_text()
    start(run_dir, *now)
    assert (run_dir / "events.jsonl").read_text() == before, "what was said once is not said again"


def test_the_advice_after_divergence_helps(imported: None, tmp_path: Path) -> None:
    """A lower rate, from the checkpoint before: as a run that never had the higher one."""
    run_dir, calm = tmp_path / "run", tmp_path / "calm"
    limits = ("resilience.loss_window=2", "resilience.loss_spike_factor=1.5", "resilience.max_bad_steps=1")
    assert start(run_dir, *limits, "training.stop_after=4")[0] == "stopped"
    shutil.copytree(run_dir, calm)
    with pytest.raises(DivergedError, match=r"go on from it, .* with a lower optimizer\.learning_rate"):
        start(run_dir, *limits, "optimizer.learning_rate=100")
    assert start(run_dir, *limits)[0] == start(calm, *limits)[0] == "finished"
    rates = [(record["train/loss"], record["train/learning_rate"]) for record in lines_of(run_dir / "metrics.jsonl")]
    assert rates == [(r["train/loss"], r["train/learning_rate"]) for r in lines_of(calm / "metrics.jsonl")]
    assert changes_written(run_dir)["optimizer.learning_rate"] == (6e-4, 100.0, True)


def test_a_run_that_begins_with_anothers_checkpoint(imported: None, tmp_path: Path) -> None:
    """``checkpoint.load`` and a resume are one thing."""
    run_dir, new = tmp_path / "run", tmp_path / "new"
    start(run_dir, "training.stop_after=4")
    rate = "optimizer.learning_rate=0.06"
    start(new, f"checkpoint.load={run_dir}/checkpoints", rate)
    start(run_dir, rate)
    loaded, went_on = lines_of(new / "metrics.jsonl"), lines_of(run_dir / "metrics.jsonl")[4:]
    assert [r["train/loss"] for r in loaded] == [r["train/loss"] for r in went_on]
    assert changes_written(new) == changes_written(run_dir) | {"training.stop_after": (4, 0, True)}
    assert loaded[0]["train/learning_rate"] > 0.01

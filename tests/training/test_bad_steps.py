"""A NaN in one gradient, a loss that is far off: skipped or gone back from, the same after an interruption, bounded."""

import json
import math
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.config.resilience import ResilienceConfig
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.batch import skip_over
from ultramem_megatron.errors import DivergedError
from ultramem_megatron.monitor.records import read_records
from ultramem_megatron.planning.plan import Plan
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.plans import local_plan
from ultramem_megatron.testing.tiny import tiny_config
from ultramem_megatron.training.guard import Guard

RANKS = 2
FORKED = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")


def settings(**changes: Any) -> ResilienceConfig:
    return ResilienceConfig(loss_window=3, **changes)


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (4.0, 1.0, ""),
        (7.9, 1e9, ""),
        (8.1, 1.0, "the loss is 8.1000, over 2 times the 4.0000 of the steps before"),
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, math.nan, "the loss is inf"),
        (4.0, math.nan, "the gradient norm is nan"),
    ],
)
def test_what_is_bad(loss: float, norm: float, reason: str) -> None:
    assert Guard(recent_losses=[3.0, 4.0, 5.0]).judge(settings(), loss, norm) == reason


def test_few_losses_make_no_median_and_zero_looks_for_none() -> None:
    assert Guard(recent_losses=[3.0, 4.0]).judge(settings(), 100.0, 1.0) == ""
    assert Guard(recent_losses=[3.0, 4.0, 5.0]).judge(settings(loss_spike_factor=0), 100.0, 1.0) == ""


def test_bad_steps_are_counted_and_make_no_median() -> None:
    guard = Guard()
    for loss, reason in [(1.0, ""), (2.0, ""), (99.0, "bad"), (98.0, "bad"), (3.0, ""), (4.0, "")]:
        guard.remember(settings(), loss, reason)
    assert guard == Guard(recent_losses=[2.0, 3.0, 4.0], bad_steps=2, bad_in_a_row=0)


@pytest.mark.parametrize(
    ("start", "expected"), [(0, 0), (4, 4), (6, 24), (8, 24), (15, 24), (20, 24), (24, 24), (30, 36), (36, 36)]
)
def test_what_is_left_out_is_not_touched(start: int, expected: int) -> None:
    assert skip_over(start, 4, [(16, 24), (8, 16), (32, 36)]) == expected


def train(config: RunConfig, plan: Plan, run_dir: Path, poisoned: Collection[int], spoil: str) -> str:
    """``pretrain`` on this rank; the batch that begins at a poisoned sample has a NaN in one gradient of one rank, or a
    loss that is ten times too high."""
    from ultramem_megatron.training import step
    from ultramem_megatron.training.pretrain import pretrain

    run_micro_batches = step.run_micro_batches

    def spoilt(state: Any, micro_batches: Any, *, forward_only: bool) -> float:
        loss = run_micro_batches(state, micro_batches, forward_only=forward_only)
        if forward_only or state.next_sample not in poisoned:
            return loss
        if spoil == "gradient" and dist.get_rank() == 1:
            next(p for p in state.ddp[0].parameters() if p.requires_grad).main_grad.view(-1)[:] = math.nan
        return loss * 10 if spoil == "loss" else loss

    step.run_micro_batches = spoilt  # type: ignore[assignment]  # a fork: no other test sees it
    return pretrain(config, plan, run_dir, torch.device("cpu")).value


def start(run_dir: Path, *overrides: str, poisoned: Collection[int] = (), spoil: str = "gradient") -> str:
    config = tiny_config(*overrides)
    outcomes = run_distributed(RANKS, train, config, local_plan(config, RANKS), run_dir, poisoned, spoil)
    assert len(set(outcomes)) == 1
    return outcomes[0]


def curve(run_dir: Path) -> list[tuple[float, ...]]:
    names = ("step", "train/loss", "train/gradient_norm", "train/learning_rate", "train/consumed_samples")
    return [tuple(record[name] for name in names) for record in read_records(run_dir / "metrics.jsonl")]


def digests(run_dir: Path, step: int = 8) -> dict[str, Any]:
    manifest = json.loads((run_dir / "checkpoints" / f"step_{step:08d}" / "manifest.json").read_text())
    return dict(manifest["digests"])


def events(run_dir: Path) -> list[str]:
    return [json.loads(line)["words"] for line in (run_dir / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def imported(megatron: ModuleType) -> None:
    for module in ("ultramem_megatron.training.pretrain", "torch.utils.tensorboard"):
        import_module(module)  # once, before the forks


@FORKED
@pytest.mark.slow
def test_a_step_is_skipped(imported: None, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start(whole, poisoned={20}) == "finished"
    assert start(parts, "training.stop_after=7", poisoned={20}) == "stopped"
    assert start(parts, poisoned={20}) == "finished"
    assert [point[0] for point in curve(whole)] == list(range(1, 9))
    assert all(math.isfinite(value) for point in curve(whole) for value in point if point[0] != 6)
    assert math.isnan(curve(whole)[5][2])
    assert repr(curve(whole)) == repr(curve(parts))
    assert digests(whole) == digests(parts)
    assert events(whole) == ["step 6: the gradient norm is nan; skipped, 1 of at most 10 bad steps"]
    assert not (whole / "checkpoints" / "step_00000006").exists(), "a bad step is not saved"


@FORKED
@pytest.mark.slow
def test_the_run_goes_back_and_leaves_samples_out(imported: None, tmp_path: Path) -> None:
    whole, parts, told = tmp_path / "whole", tmp_path / "parts", tmp_path / "told"
    back = ("resilience.bad_step=roll_back", "resilience.loss_window=4", "training.eval_interval=0")
    assert start(whole, *back, poisoned={20}, spoil="loss") == "finished"
    assert [(point[0], point[4]) for point in curve(whole)][3:6] == [(4, 16), (5, 28), (6, 32)]
    assert [point[0] for point in curve(whole)] == list(range(1, 9))
    assert "goes back to step_00000004 and leaves out samples 16 to 23" in events(whole)[0]
    # interrupted after it went back
    assert start(parts, *back, "training.stop_after=7", poisoned={20}, spoil="loss") == "stopped"
    assert start(parts, *back, poisoned={20}, spoil="loss") == "finished"
    assert curve(whole) == curve(parts)
    assert digests(whole) == digests(parts)
    # as a process that was told beforehand, and has nothing to go back from
    assert start(told, *back, "training.stop_after=4") == "stopped"
    path = told / "checkpoints" / "step_00000004" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"skipped_samples": [[16, 24]]}))
    assert start(told, *back) == "finished"
    assert curve(whole) == curve(told)
    assert digests(whole) == digests(told)


@FORKED
@pytest.mark.slow
def test_before_the_first_checkpoint_there_is_only_skipping(imported: None, tmp_path: Path) -> None:
    back, skip = tmp_path / "back", tmp_path / "skip"
    assert start(back, "resilience.bad_step=roll_back", "training.steps=4", poisoned={4}) == "finished"
    assert start(skip, "training.steps=4", poisoned={4}) == "finished"
    assert repr(curve(back)) == repr(curve(skip)), "with a record of the bad step"
    assert [record.get("train/bad_steps") for record in read_records(back / "metrics.jsonl")] == [None, 1.0, None, None]
    why = "the gradient norm is nan, and there is no checkpoint yet to go back to"
    assert events(back) == [f"step 2: {why}; skipped, 1 of at most 10 bad steps"]
    assert not (back / "checkpoints" / "step_00000002").exists()


@FORKED
@pytest.mark.slow
def test_too_many_bad_steps_are_an_end(imported: None, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"step 8: the gradient norm is nan; resilience\.max_bad_steps = 2 steps"):
        start(tmp_path / "run", "resilience.max_bad_steps=2", "checkpoint.keep=1", poisoned={20, 24, 28})
    names = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert names == ["step_00000004"], "the last one from before"

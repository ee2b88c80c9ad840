"""Whole runs on two forked ranks: what they write, how they stop, and that they go on as if nothing had been."""

import os
import shutil
import signal
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.checkpoint.set_aside import is_set_aside, set_aside
from ultramem_megatron.config.load import load_run_config
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.monitor.records import read_records
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.planning.plan import Plan
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.plans import local_plan
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA"),
]

RANKS = 2
DIMENSION_WISE = ("memory.partition=dimension_wise", "memory.parallel_size=2", "training.eval_interval=3")
NEVER = (0, 0, 0)


def run(config: RunConfig, plan: Plan, run_dir: Path, signalled: tuple[int, int, int] = NEVER) -> str:
    """``pretrain`` on this rank. ``signalled``: a signal, the rank that gets it, and the step after which."""
    from ultramem_megatron.training import loop
    from ultramem_megatron.training.pretrain import pretrain

    number, receiver, after = signalled
    step = loop.train_step

    def step_then_signal(state: Any, micro_batches: Any) -> Any:
        result = step(state, micro_batches)
        if number and result.step == after and dist.get_rank() == receiver:
            os.kill(os.getpid(), number)
        return result

    loop.train_step = step_then_signal  # a fork: no other test sees it
    return pretrain(config, plan, run_dir, torch.device("cpu")).value


def start(config: RunConfig, run_dir: Path, signalled: tuple[int, int, int] = NEVER) -> str:
    """The outcome, the same on all ranks."""
    outcomes = run_distributed(RANKS, run, config, local_plan(config, RANKS), run_dir, signalled)
    assert len(set(outcomes)) == 1
    return outcomes[0]


def records(run_dir: Path) -> list[dict[str, float]]:
    return list(read_records(run_dir / "metrics.jsonl"))


def curve(run_dir: Path) -> list[tuple[float, ...]]:
    """What must not depend on whether a run was interrupted."""
    names = ("step", "train/loss", "train/gradient_norm", "train/learning_rate", "train/value_learning_rate")
    return [tuple(record[name] for name in names) for record in records(run_dir)]


@pytest.fixture(scope="module")
def undisturbed(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps from start to end."""
    for module in ("ultramem_megatron.training.pretrain", "torch.utils.tensorboard"):
        import_module(module)  # once, before the forks
    run_dir = tmp_path_factory.mktemp("undisturbed")
    assert start(tiny_config(*DIMENSION_WISE), run_dir) == "finished"
    return run_dir


def test_every_step_is_reported_once(undisturbed: Path) -> None:
    written = records(undisturbed)
    assert [record["step"] for record in written] == list(range(1, 9))
    for record in written:
        assert record["train/consumed_samples"] == record["step"] * 4
        assert record["train/consumed_tokens"] == record["step"] * 4 * 32
        assert record["throughput/step_seconds"] > 0
        assert record["throughput/tokens_per_second"] > 0
    assert 5.0 < written[0]["train/loss"] < 6.5  # ln(256) = 5.5 before anything is learnt
    assert written[0]["train/value_learning_rate"] == pytest.approx(
        written[0]["train/learning_rate"] * (1 + 9 * 7 / 8), rel=1e-9
    )


def test_predicted_bytes_are_the_measured_ones(undisturbed: Path) -> None:
    reported = [record for record in records(undisturbed) if "communication/forward_bytes/layer0" in record]
    assert [record["step"] for record in reported] == [2, 4, 6, 8]
    for record in reported:
        for way in ("forward", "backward"):
            measured = record[f"communication/{way}_bytes/layer0"]
            assert measured == record[f"communication/predicted_{way}_bytes/layer0"]
            assert measured > 0


def test_memory_layers_are_reported(undisturbed: Path) -> None:
    for record in records(undisturbed):
        if record["step"] % 2:
            assert not any(name.startswith("memory/") for name in record)
            continue
        assert 0.5 < record["memory/slot_usage_fraction/layer0"] <= 1
        assert record["memory/top1_score/layer0"] >= record["memory/mean_score/layer0"]
        assert record["memory/output_std/layer0"] > 0
        assert 0 <= record["memory/singular_value_ratio/layer0"] <= 1
        assert record["memory/resident_bytes"] > 2**20


def test_validation(undisturbed: Path, tmp_path: Path) -> None:
    validated = {r["step"]: r for r in records(undisturbed) if "validation/loss" in r}
    assert sorted(validated) == [3, 6, 8]
    for record in validated.values():
        assert record["validation/loss"] == record["validation/loss/synthetic"]
    losses = [record["validation/loss"] for record in validated.values()]
    assert all(4.0 < loss < 6.5 for loss in losses)
    assert len(set(losses)) == 3
    assert start(tiny_config(*DIMENSION_WISE, "training.eval_interval=0"), tmp_path) == "finished"
    assert curve(tmp_path) == curve(undisturbed), "validation must not change the training"
    assert not any("validation/loss" in record for record in records(tmp_path))


def test_the_files_of_a_run(undisturbed: Path) -> None:
    config = tiny_config(*DIMENSION_WISE)
    assert load_run_config(undisturbed / "config.yaml") == config
    assert Plan.load(undisturbed / "plan.json") == choose_plan(config, local_cluster(RANKS))
    steps = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert steps == ["latest", "step_00000006", "step_00000008"]
    assert list((undisturbed / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("number", "receiver", "after"), [(signal.SIGTERM, 0, 3), (signal.SIGUSR1, 1, 4)], ids=["SIGTERM", "SIGUSR1"]
)
def test_a_signal_saves_and_stops_and_the_run_goes_on(
    undisturbed: Path, tmp_path: Path, number: int, receiver: int, after: int
) -> None:
    config = tiny_config(*DIMENSION_WISE)
    assert start(config, tmp_path, (number, receiver, after)) == "stopped"
    assert (tmp_path / "checkpoints" / "latest").read_text() == f"step_{after:08d}\n"
    assert curve(tmp_path) == curve(undisturbed)[:after]
    assert start(config, tmp_path) == "finished"
    assert curve(tmp_path) == curve(undisturbed)
    validations = [record.get("validation/loss") for record in records(tmp_path)]
    assert validations == [record.get("validation/loss") for record in records(undisturbed)]


def test_stop_after_keeps_the_schedule(undisturbed: Path, tmp_path: Path) -> None:
    assert start(tiny_config(*DIMENSION_WISE, "training.stop_after=5"), tmp_path) == "stopped"
    assert curve(tmp_path) == curve(undisturbed)[:5]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000005\n"


def test_a_finished_run_started_again_changes_nothing(undisturbed: Path) -> None:
    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in (undisturbed / "checkpoints").rglob("*") if p.is_file()}

    files, before = state(), curve(undisturbed)
    assert start(tiny_config(*DIMENSION_WISE), undisturbed) == "finished"
    assert state() == files
    assert curve(undisturbed) == before


def test_steps_after_a_checkpoint_that_is_set_aside_are_done_again(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(undisturbed, tmp_path / "run")
    newest = run_dir / "checkpoints" / "step_00000008"
    set_aside(newest, "3 starts from it failed")
    assert start(tiny_config(*DIMENSION_WISE), run_dir) == "finished"
    assert curve(run_dir) == curve(undisturbed), "each step stands there once"
    assert records(run_dir)[5]["time"] == records(undisturbed)[5]["time"], "it went on from step 6"
    assert records(run_dir)[6]["time"] > records(undisturbed)[7]["time"]
    assert not is_set_aside(newest), "it was written anew"


def test_a_new_run_begins_with_the_checkpoint_of_another(undisturbed: Path, tmp_path: Path) -> None:
    load = f"checkpoint.load={undisturbed / 'checkpoints'}"
    assert start(tiny_config(*DIMENSION_WISE, load, "training.steps=10"), tmp_path) == "finished"
    assert [record["step"] for record in records(tmp_path)] == [9, 10]
    with pytest.raises(CheckpointError, match=r"checkpoint\.load = .*nowhere holds no checkpoint"):
        start(tiny_config(*DIMENSION_WISE, f"checkpoint.load={tmp_path}/nowhere"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_another_model_is_refused_and_nothing_is_touched(undisturbed: Path) -> None:
    before = (undisturbed / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match=r"memory\.value_dim = 16 there and 32 here"):
        start(tiny_config(*DIMENSION_WISE, "memory.value_dim=32"), undisturbed)
    assert (undisturbed / "config.yaml").read_text() == before

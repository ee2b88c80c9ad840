"""Dropout: who draws the same numbers and who others, and that a resumed run repeats what it would have drawn."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.metrics.catalogue import VALIDATION_LOSS
from ultramem_megatron.testing.budget import budget
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.layouts import Layout, train_layout
from ultramem_megatron.testing.tiny import EXPERTS, tiny_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")

DROPOUT = "model.dropout=0.2"


def build_groups_of(config: RunConfig) -> tuple[Any, Any]:
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.setup import build_run_groups

    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    return plan, build_run_groups(config, plan, torch.device("cpu"))


Draws = tuple[tuple[float, ...], tuple[float, ...]]


def draw(config: RunConfig, steps: list[int]) -> list[Draws]:
    """For each step: numbers of torch's generator, and of megatron-core's tracker, on this rank."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    from ultramem_megatron.training.random_state import seed_step

    _, groups = build_groups_of(config)
    drawn = []
    for step in steps:
        seed_step(config, groups, step)
        outside = tuple(torch.rand(3).tolist())
        with get_cuda_rng_tracker().fork():
            inside = tuple(torch.rand(3).tolist())
        drawn.append((outside, inside))
    return drawn


@pytest.mark.slow
def test_places_draw_as_they_should(megatron: ModuleType) -> None:
    """2 tensor x 2 data x 2 stages: rank = tensor + 2 * data + 4 * stage."""
    config = tiny_config(DROPOUT, "parallelism.tensor=2", "parallelism.pipeline=2", "memory.spans=1:1")
    ranks = [drawn for (drawn,) in run_distributed(8, draw, config, [1])]
    for first in range(0, 8, 2):
        assert ranks[first][0] == ranks[first + 1][0], "tensor-parallel ranks share what is outside the tracker"
    assert len({outside for outside, _ in ranks}) == 4, "data-parallel ranks and stages differ"
    assert len({inside for _, inside in ranks} | {outside for outside, _ in ranks}) == 8 + 4


def test_a_step_draws_the_same_whatever_came_before(megatron: ModuleType) -> None:
    (first,) = run_distributed(1, draw, tiny_config(DROPOUT), [1, 2, 3])
    (later,) = run_distributed(1, draw, tiny_config(DROPOUT), [3, 2])
    (other,) = run_distributed(1, draw, tiny_config(DROPOUT, "training.seed=7"), [1])
    assert later == [first[2], first[1]]
    assert len({*first, *other}) == 4


@pytest.mark.parametrize(("setting", "seeded"), [("model.dropout=0", False), ("memory.dropout=0.1", True)])
def test_nothing_is_seeded_without_dropout(megatron: ModuleType, setting: str, seeded: bool) -> None:
    (drawn,) = run_distributed(1, draw, tiny_config(setting), [1, 1])
    assert (drawn[0] == drawn[1]) is seeded


TP2 = ("parallelism.tensor=2",)
TP2_SP = (*TP2, "parallelism.sequence=true")
RESUMED = [
    pytest.param((DROPOUT,), Layout("1 process", 1), id="1-process"),
    pytest.param(
        (DROPOUT, *EXPERTS), Layout("EP2", 2, ("parallelism.expert=2",)), id="experts", marks=pytest.mark.slow
    ),
    pytest.param((DROPOUT, "memory.dropout=0.2"), Layout("TP2", 2, TP2), id="tp2", marks=pytest.mark.slow),
    pytest.param((DROPOUT, "memory.dropout=0.2"), Layout("TP2+SP", 2, TP2_SP), id="tp2-sp", marks=pytest.mark.slow),
    pytest.param(
        (DROPOUT, "memory.spans=1:1"), Layout("PP2", 2, ("parallelism.pipeline=2",)), id="pp2", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("overrides", "layout"), RESUMED)
def test_a_resumed_run_goes_on_bit_by_bit(
    megatron: ModuleType, overrides: tuple[str, ...], layout: Layout, tmp_path: Path
) -> None:
    """The two parts repeat every step of an undisturbed run, so that this also runs twice to the same bits."""
    config = tiny_config(*overrides, f"training.steps={budget(4, 6)}")
    undisturbed = train_layout(config, layout)
    stopped = dataclasses.replace(config, training=dataclasses.replace(config.training, stop_after=2))
    before = train_layout(stopped, layout, save=tmp_path)
    after = train_layout(config, layout, load=tmp_path)
    assert before.losses + after.losses == undisturbed.losses
    assert before.gradient_norms + after.gradient_norms == undisturbed.gradient_norms


def test_dropout_changes_losses(megatron: ModuleType) -> None:
    layout, steps = Layout("1 process", 1), "training.steps=2"
    curves = [train_layout(tiny_config(steps, *more), layout) for more in ((), (DROPOUT,), ("memory.dropout=0.5",))]
    assert len({curve.losses[0] for curve in curves}) == 3


def validation_loss(config: RunConfig) -> list[float]:
    from ultramem_megatron.data.dataset import open_training_data
    from ultramem_megatron.training.setup import build_train_state
    from ultramem_megatron.training.validation import validate

    plan, groups = build_groups_of(config)
    state = build_train_state(config, plan, groups)
    for layer in state.chunks[0].memory_layers:
        layer.begin_step()
    return [validate(state, {"same": open_training_data(config)})[VALIDATION_LOSS.name] for _ in range(2)]


def test_validation_drops_nothing(megatron: ModuleType) -> None:
    plain = run_distributed(1, validation_loss, tiny_config("training.eval_batches=1"))
    dropping = ("training.eval_batches=1", "model.dropout=0.5", "memory.dropout=0.5")
    assert run_distributed(1, validation_loss, tiny_config(*dropping)) == plain


def replicated_weights(config: RunConfig) -> dict[str, Tensor]:
    """After three steps: weights that every tensor-parallel rank holds whole."""
    from ultramem_megatron.data.dataset import open_training_data
    from ultramem_megatron.training.setup import build_train_state
    from ultramem_megatron.training.step import train_step

    plan, groups = build_groups_of(config)
    state = build_train_state(config, plan, groups)
    batches = state.batches(open_training_data(config))
    for _ in range(3):
        train_step(state, next(batches))
    return {
        name: parameter.detach().clone()
        for name, parameter in state.chunks[0].named_parameters()
        if not getattr(parameter, "tensor_model_parallel", False)
    }


@pytest.mark.slow
@pytest.mark.parametrize("layout", [TP2, TP2_SP], ids=["tp2", "tp2-sp"])
def test_tensor_parallel_ranks_stay_together(megatron: ModuleType, layout: tuple[str, ...]) -> None:
    config = tiny_config(DROPOUT, "memory.dropout=0.2", *layout)
    first, second = run_distributed(2, replicated_weights, config)
    assert any("layernorm" in name for name in first) and any(name.startswith("memory.") for name in first)
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name

"""A mixture of experts: it learns, its balance loss has the right gradient, and every layout gives the same curve."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.budget import budget
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.layouts import Curve, Layout, train_layout
from ultramem_megatron.testing.tiny import EXPERTS, tiny_config

from .conftest import assert_same_curve

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")

STEPS, SAVE_AFTER = budget(3, 5), budget(1, 3)

ALONE = Layout("1 process", 1)
TP2 = ("parallelism.tensor=2", "parallelism.sequence=true")
PP2 = ("parallelism.pipeline=2",)
EP2 = ("parallelism.expert=2",)
FOUR_BLOCKS = "model.layers=4"
"""A chunk needs a block."""
LAYOUTS = (
    Layout("DP2", 2),
    Layout("EP2", 2, EP2),
    Layout("TP2+SP", 2, TP2),
    Layout("PP2", 2, PP2),
    Layout("PP2 x 2 chunks", 2, (*PP2, "parallelism.virtual_pipeline=2", FOUR_BLOCKS)),
    Layout("EP2 x DP2", 4, EP2),
    Layout("EP4", 4, ("parallelism.expert=4",)),
    Layout("EP2 x TP2+SP", 4, (*EP2, *TP2)),
    Layout("EP2 x PP2", 4, (*EP2, *PP2)),
    Layout("TP2+SP x PP2", 4, (*TP2, *PP2)),
)


def moe_config(*overrides: str) -> RunConfig:
    """A balance weight and a rate at which a wrong gradient of router or experts shows in the next losses."""
    return tiny_config(
        *EXPERTS,
        *("model.layers=2", "model.gated_mlp=true", "model.expert_balance_weight=0.1", "optimizer.learning_rate=1e-2"),
        *(f"training.steps={STEPS}", "training.global_batch_size=8", f"training.micro_batch_size={budget(2, 1)}"),
        *overrides,
    )


def first(curve: Curve, steps: int) -> Curve:
    return Curve(curve.losses[:steps], curve.gradient_norms[:steps])


def with_stop(config: RunConfig, step: int) -> RunConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, stop_after=step))


@pytest.mark.parametrize("per_token", [1, 2])
def test_it_learns(megatron: ModuleType, per_token: int) -> None:
    config = tiny_config(
        *EXPERTS,
        *(f"model.experts_per_token={per_token}", "training.steps=40"),
        *("training.global_batch_size=8", "training.micro_batch_size=8", "optimizer.learning_rate=1e-2"),
    )
    losses = train_layout(config, ALONE).losses
    assert sum(losses[-5:]) / 5 < losses[0] - 1


@pytest.fixture(scope="module")
def alone(megatron: ModuleType) -> Curve:
    """The curve on one process."""
    return train_layout(moe_config(), ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_gives_the_same_curve(layout: Layout, alone: Curve) -> None:
    expected = train_layout(moe_config(FOUR_BLOCKS), ALONE) if FOUR_BLOCKS in layout.overrides else alone
    assert_same_curve(train_layout(moe_config(), layout), expected, STEPS)
    assert expected.losses[-1] < expected.losses[0]


NAMED = {layout.name: layout for layout in (ALONE, *LAYOUTS)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saver", "loaders"),
    [
        ("1 process", ["EP2"]),
        ("EP2", ["1 process", "DP2", "EP2"]),
        ("EP2 x DP2", ["EP2 x DP2"]),
        ("EP2 x TP2+SP", ["1 process"]),
        ("DP2", ["EP2 x PP2"]),
    ],
)
def test_a_checkpoint_goes_on_under_another_layout(
    saver: str, loaders: list[str], alone: Curve, tmp_path: Path
) -> None:
    train_layout(with_stop(moe_config(), SAVE_AFTER), NAMED[saver], save=tmp_path)
    for loader in loaders:
        assert_same_curve(train_layout(moe_config(), NAMED[loader], load=tmp_path), alone, STEPS, SAVE_AFTER)


@pytest.mark.slow
def test_experts_beside_value_tables(megatron: ModuleType, tmp_path: Path) -> None:
    """Tables split over the ranks that share nothing else: the experts are data parallel."""
    config = moe_config("memory.variant=ultramem", "memory.spans=1:2")
    split = Layout("mem 2", 2, ("memory.parallel_size=2", "memory.partition=number_wise"))
    expected = train_layout(config, ALONE)
    before = train_layout(with_stop(config, SAVE_AFTER), split, save=tmp_path)
    assert_same_curve(before, first(expected, SAVE_AFTER), SAVE_AFTER)
    # with what it did before, the second is the curve of the split table
    for layout in (ALONE, split, Layout("TP2+SP", 2, (*TP2, "memory.parallel_size=2"))):
        assert_same_curve(train_layout(config, layout, load=tmp_path), expected, STEPS, SAVE_AFTER)


@pytest.mark.slow
def test_bf16(megatron: ModuleType) -> None:
    config = moe_config("training.precision=bf16")
    expected = train_layout(config, ALONE).losses
    assert expected[-1] < expected[0]
    for layout in (NAMED["EP2"], NAMED["EP2 x TP2+SP"]):
        assert train_layout(config, layout).losses == pytest.approx(expected, rel=1e-2)


@dataclasses.dataclass(frozen=True)
class Step:
    """One global batch: what it reports, and the gradients by parameter name."""

    loss: float
    gradients: dict[str, Tensor]


def ready(config: RunConfig) -> tuple[Any, list[Any]]:
    """A run before its first step, and the micro-batches of that step."""
    from ultramem_megatron.data.dataset import open_training_data
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.setup import build_run_groups, build_train_state

    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    state = build_train_state(config, plan, build_run_groups(config, plan, torch.device("cpu")))
    state.ddp[0].train()
    state.ddp[0].zero_grad_buffer()
    return state, next(state.batches(open_training_data(config)))


def gradients_of(state: Any) -> dict[str, Tensor]:
    return {name: parameter.main_grad.clone() for name, parameter in state.chunks[0].named_parameters()}


def step_of_a_run(config: RunConfig) -> Step:
    from ultramem_megatron.training.forward_backward import run_micro_batches

    state, micro_batches = ready(config)
    loss = run_micro_batches(state, micro_batches, forward_only=False)
    return Step(loss, gradients_of(state))


def step_by_definition(config: RunConfig, weight: float) -> Step:
    """The mean over micro-batches of (loss + weight * balance), with the balance written out here.

    ``config`` has a weight of 0, so that megatron-core adds nothing.
    """
    from megatron.core.transformer.moe.router import TopKRouter

    state, micro_batches = ready(config)
    (chunk,) = state.chunks
    balances: list[Tensor] = []

    def add_balance(router: Any, inputs: tuple[Tensor, ...]) -> None:
        probabilities = F.linear(inputs[0].flatten(0, 1), router.weight).softmax(dim=-1)
        chosen = probabilities.topk(config.model.experts_per_token, dim=-1).indices
        shares = chosen.flatten().bincount(minlength=config.model.experts) / chosen.numel()
        balances.append(config.model.experts * (shares * probabilities.mean(dim=0)).sum())

    for module in chunk.modules():
        if isinstance(module, TopKRouter):
            module.register_forward_pre_hook(add_balance)
    total = 0.0
    for batch in micro_batches:
        balances.clear()
        loss = chunk(batch["tokens"], batch["position_ids"], None, labels=batch["labels"]).mean()
        assert len(balances) == config.model.layers
        ((loss + weight * sum(balances)) / len(micro_batches)).backward()
        total += loss.item() / len(micro_batches)
    return Step(total, gradients_of(state))


@pytest.mark.parametrize("per_token", [1, 2])
def test_the_balance_loss_counts_once_whatever_the_number_of_micro_batches(
    megatron: ModuleType, per_token: int
) -> None:
    sizes = (f"model.experts_per_token={per_token}", "training.global_batch_size=4", "training.micro_batch_size=2")
    balanced = tiny_config(*EXPERTS, *sizes, "model.expert_balance_weight=0.5")
    unbalanced = tiny_config(*EXPERTS, *sizes, "model.expert_balance_weight=0")
    (found,) = run_distributed(1, step_of_a_run, balanced)
    (expected,) = run_distributed(1, step_by_definition, unbalanced, 0.5)
    (without,) = run_distributed(1, step_of_a_run, unbalanced)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    routers = [name for name in found.gradients if name.endswith("router.weight")]
    assert len(routers) == 2
    for name in routers:
        assert not torch.allclose(found.gradients[name], without.gradients[name], rtol=0.1), "the loss has no weight"
    assert found.loss == without.loss == pytest.approx(expected.loss, rel=1e-6), "what is reported is the text's loss"

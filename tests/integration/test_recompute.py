"""Activation recompute changes what is kept, and nothing else: not the curve, not the number of lookups."""

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.budget import budget
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.layouts import Curve, Layout
from ultramem_megatron.testing.tiny import EXPERTS, tiny_config

from .conftest import assert_same_curve, train

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")

STEPS = budget(4, 5)

ALONE = Layout("1 process", 1)
PP2 = ("parallelism.pipeline=2",)
SEQUENCE = ("parallelism.tensor=2", "parallelism.sequence=true")
AT_ONCE = (f"training.micro_batch_size={budget(4, 1)}",)
"""One micro-batch: gathers over a tensor-parallel group are dear, and other layouts have several."""
SPLIT = ("memory.parallel_size=2", "memory.partition=number_wise")


def recompute_config(*overrides: str) -> RunConfig:
    """Four blocks and a span over the middle, at a rate at which a wrong gradient shows."""
    sizes = ("model.layers=4", "memory.spans=1:1/2:3", "memory.auxiliary_margin=0", "optimizer.learning_rate=1e-2")
    return tiny_config(*sizes, f"training.steps={STEPS}", "training.micro_batch_size=1", *overrides)


CASES = [
    (ALONE, ()),
    (ALONE, ("model.dropout=0.2", "memory.dropout=0.2")),
    (ALONE, EXPERTS),
    (Layout("mem 2", 2, SPLIT), ()),
    (Layout("TP2", 2, ("parallelism.tensor=2", *AT_ONCE)), ()),
    # one at a time: under sequence parallelism both draw from one stream, in an order that full recompute changes
    (Layout("TP2+SP", 2, (*SEQUENCE, *AT_ONCE)), ("model.dropout=0.2",)),
    (Layout("TP2+SP", 2, (*SEQUENCE, *AT_ONCE)), ("memory.dropout=0.2",)),
    (Layout("PP2", 2, PP2), ()),
    (Layout("PP2 x 2 chunks", 2, (*PP2, "parallelism.virtual_pipeline=2")), ()),
]


@pytest.fixture(scope="module")
def without_recompute(megatron: ModuleType) -> Callable[..., Curve]:
    """The curve of a layout and overrides, trained once."""
    return cache(lambda layout, overrides: train(recompute_config(*overrides), layout))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "overrides"), CASES, ids=[" ".join((layout.name, *settings)) for layout, settings in CASES]
)
def test_the_curve_stays(without_recompute: Callable[..., Curve], layout: Layout, overrides: tuple[str, ...]) -> None:
    expected = without_recompute(layout, overrides)
    assert len(expected.losses) == STEPS
    assert expected.losses[-1] < expected.losses[0]
    for mode in ("selective", "full"):
        assert_same_curve(train(recompute_config(f"training.recompute={mode}", *overrides), layout), expected, STEPS)


def ready(config: RunConfig) -> tuple[Any, Any]:
    """A run before its first step, and the micro-batches of that step."""
    from ultramem_megatron.data.dataset import open_training_data
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.setup import build_run_groups, build_train_state

    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    state = build_train_state(config, plan, build_run_groups(config, plan, torch.device("cpu")))
    return state, next(state.batches(open_training_data(config)))


def count_lookups(config: RunConfig) -> list[tuple[int, int, int]]:
    """(lookups, bytes forward, bytes backward) of each memory layer in one step."""
    from ultramem_megatron.training.step import train_step

    state, batch = ready(config)
    layers = state.chunks[0].memory_layers
    counts = [0] * len(layers)

    def counter(index: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            counts[index] += 1

        return count

    for index, layer in enumerate(layers):
        layer.observer = counter(index)
    train_step(state, batch)
    traffic = [layer.table.partition.channel.traffic for layer in layers]
    return [(n, t.forward_bytes, t.backward_bytes) for n, t in zip(counts, traffic, strict=True)]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_a_lookup_runs_once(megatron: ModuleType, mode: str) -> None:
    kept = run_distributed(2, count_lookups, recompute_config(*SPLIT))
    again = run_distributed(2, count_lookups, recompute_config(*SPLIT, f"training.recompute={mode}"))
    assert [n for rank in kept for n, _, _ in rank] == [2, 2, 2, 2], "two layers, two micro-batches a rank"
    assert kept == again
    assert all(forward > 0 and backward > 0 for rank in again for _, forward, backward in rank)


def kept_bytes(config: RunConfig, training: bool) -> int:
    """What a forward pass keeps for the backward pass, weights apart."""
    state, (batch, *_) = ready(config)
    (chunk,) = state.chunks
    for layer in chunk.memory_layers:
        layer.begin_step()
    weights = {parameter.untyped_storage().data_ptr() for parameter in chunk.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # an address is used again once its tensor is gone

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    chunk.train(training)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        chunk(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return sum(kept.values())


def test_it_keeps_less(megatron: ModuleType) -> None:
    """Long sequences: scores of attention weigh most, then what a block keeps."""
    sizes = ("model.seq_length=128", "memory.spans=2:3")
    kept = {}
    for mode in ("none", "selective", "full"):
        config = recompute_config(*sizes, f"training.recompute={mode}")
        (kept[mode],) = run_distributed(1, kept_bytes, config, True)
    model = recompute_config(*sizes).model
    scores = model.heads * model.seq_length**2 * 4
    assert kept["none"] - kept["selective"] > model.layers * scores
    assert kept["full"] < kept["selective"] / 2


def test_evaluation_keeps_as_it_goes(megatron: ModuleType) -> None:
    """Full recompute concerns training alone, as megatron-core's."""
    (kept,) = run_distributed(1, kept_bytes, recompute_config(), False)
    (found,) = run_distributed(1, kept_bytes, recompute_config("training.recompute=full"), False)
    assert found == kept

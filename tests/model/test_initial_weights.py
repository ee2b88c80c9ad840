"""A weight depends on seed, name and place alone: every layout starts from the same model."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ultramem_megatron.testing.distributed import run_distributed

SLOW = pytest.mark.slow
LAYOUTS = [
    pytest.param(2, ("memory.parallel_size=2", "memory.partition=number_wise"), id="mem2-number-wise"),
    pytest.param(4, ("memory.parallel_size=4", "memory.partition=number_wise"), id="mem4-number-wise", marks=SLOW),
    pytest.param(2, ("memory.parallel_size=2", "memory.partition=number_wise_pooled"), id="mem2-pooled"),
    pytest.param(2, ("memory.parallel_size=2", "memory.partition=dimension_wise"), id="mem2-dimension-wise"),
    pytest.param(
        4, ("memory.parallel_size=4", "memory.partition=dimension_wise"), id="mem4-dimension-wise", marks=SLOW
    ),
    pytest.param(
        4,
        ("memory.parallel_size=4", "memory.partition=grid", "memory.node_size=2"),
        id="mem4-grid",
        marks=SLOW,
    ),
    pytest.param(2, ("parallelism.tensor=2", "parallelism.sequence=true"), id="tp2-sp"),
    pytest.param(2, ("parallelism.pipeline=2",), id="pp2"),
    pytest.param(2, ("parallelism.pipeline=2", "parallelism.virtual_pipeline=2"), id="pp2-vp2"),
    pytest.param(
        4, ("parallelism.tensor=2", "parallelism.pipeline=2", "memory.parallel_size=2"), id="tp2-pp2-mem2", marks=SLOW
    ),
]
GATED = ("model.gated_mlp=true",)
EXPERTS = ("memory.variant=none", "model.experts=4", "model.expert_ffn_hidden=12", "model.gated_mlp=true")
TIED = ("model.tie_embeddings=true", "model.embedding_init_std=0.5")


@pytest.fixture(scope="module")
def on_one(models: Any) -> Callable[..., dict[str, Tensor]]:
    """The weights of a small model on one process, made once for each set of overrides."""

    @cache
    def weights(*overrides: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = models.whole_weights(1, models.config(*overrides))
        return found

    return weights


@pytest.fixture(scope="module")
def alone(on_one: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of the small model on one process."""
    return on_one()


def assert_same_model(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, weight in one.items():
        assert torch.equal(weight, other[key]), key


@pytest.mark.parametrize(("ranks", "overrides"), LAYOUTS)
def test_every_layout_starts_from_the_same_model(
    models: Any, alone: dict[str, Tensor], ranks: int, overrides: tuple[str, ...]
) -> None:
    assert_same_model(alone, models.whole_weights(ranks, models.config(*overrides)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [GATED, TIED], ids=["gated-mlp", "tied-embeddings"])
@pytest.mark.parametrize("overrides", [("parallelism.tensor=2",), ("parallelism.pipeline=2",)], ids=["tp2", "pp2"])
def test_other_models_start_the_same_too(
    models: Any, on_one: Callable[..., dict[str, Tensor]], overrides: tuple[str, ...], shape: tuple[str, ...]
) -> None:
    assert_same_model(on_one(*shape), models.whole_weights(2, models.config(*shape, *overrides)))


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        pytest.param(2, ("parallelism.expert=2",), id="ep2"),
        pytest.param(
            4,
            ("parallelism.expert=2", "parallelism.tensor=2", "parallelism.sequence=true"),
            id="ep2-tp2",
            marks=SLOW,
        ),
        pytest.param(4, ("parallelism.expert=2", "parallelism.pipeline=2"), id="ep2-pp2", marks=SLOW),
    ],
)
def test_experts_start_the_same_wherever_they_are(
    models: Any, on_one: Callable[..., dict[str, Tensor]], ranks: int, overrides: tuple[str, ...]
) -> None:
    assert_same_model(on_one(*EXPERTS), models.whole_weights(ranks, models.config(*EXPERTS, *overrides)))


def test_experts_differ_and_have_the_spreads_of_an_mlp(models: Any) -> None:
    weights = models.whole_weights(1, models.config(*EXPERTS, "model.hidden=64", "model.expert_ffn_hidden=48"))
    prefix = "decoder.layers.mlp."
    first, second = (weights[f"{prefix}experts.experts.linear_fc{n}.weight"] for n in (1, 2))
    assert first.shape == (4, 4, 2 * 48, 64) and second.shape == (4, 4, 64, 48), "[blocks, experts, ...]"
    for weight, std in ((first, 0.02), (second, 0.02 / math.sqrt(8)), (weights[f"{prefix}router.weight"], 0.02)):
        assert float(weight.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))
        assert weight.unique().numel() > 0.99 * weight.numel()


def test_the_seed_decides(models: Any, alone: dict[str, Tensor]) -> None:
    other = models.whole_weights(1, models.config("training.seed=7"))
    for key, weight in alone.items():
        drawn = "norm" not in key and "conv" not in key
        assert (not torch.equal(weight, other[key])) is drawn, key


def test_spreads_are_those_of_the_config(models: Any) -> None:
    """Projections back into the residual stream shrink with depth; the memory layers follow rules of their own."""
    weights = models.whole_weights(
        1, models.config("model.hidden=64", "model.ffn_hidden=128", "model.init_std=0.03", "memory.keys_per_side=20")
    )

    def spread(key: str) -> tuple[float, float]:
        (found,) = (weight for name, weight in weights.items() if name.endswith(key))
        return float(found.std()), 5 / math.sqrt(2 * found.numel())

    expected = {
        "word_embeddings.weight": 1.0,
        "output_layer.weight": 0.03,
        "linear_qkv.weight": 0.03,
        "linear_fc1.weight": 0.03,
        "linear_proj.weight": 0.03 / math.sqrt(8),
        "linear_fc2.weight": 0.03 / math.sqrt(8),
        "layers.0.retrieval.query.weight": 1 / 8,
        "layers.0.projection.weight": 1 / math.sqrt(4 * 8),
        "layers.0.table.weight": math.sqrt(4 / (2 * 6 * 4)),
    }
    for key, std in expected.items():
        found, error = spread(key)
        assert found == pytest.approx(std, rel=error), key
    for key, weight in weights.items():
        if "layernorm" in key:
            assert weight.eq(1).all(), key


def test_no_numbers_are_drawn_twice(models: Any) -> None:
    """Neither in two tensors, nor in two blocks of a stack of blocks, nor at two places of one tensor."""
    weights = models.whole_weights(1, models.config("model.init_std=1", "memory.spans=2:2/3:3"))
    qkv = weights["decoder.layers.self_attention.linear_qkv.weight"]
    assert qkv.shape[0] == 4, "all blocks in one tensor"
    drawn = [qkv, weights["output_layer.weight"], weights["embedding.word_embeddings.weight"]]
    tables = [weights[f"memory.layers.{index}.table.weight"] for index in range(2)]
    for group in (drawn, tables):  # of the same standard deviation
        values = torch.cat([weight.flatten() for weight in group])
        assert values.unique().numel() > 0.99 * values.numel()


def test_large_tensors_are_drawn_in_pieces(
    models: Any, alone: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultramem_megatron.model import initial_weights

    monkeypatch.setattr(initial_weights, "BLOCK_ELEMENTS", 50)  # the core, whose rule sees all of it, has 16
    assert_same_model(alone, models.whole_weights(1, models.config()))


def test_tied_embeddings_are_one_parameter(models: Any) -> None:
    config = models.config(*TIED)

    def ends() -> tuple[Tensor | None, Tensor | None]:
        (chunk,) = models.build(config)
        return (
            chunk.embedding.word_embeddings.weight.detach() if chunk.pre_process else None,
            chunk.shared_embedding_or_output_weight().detach() if chunk.post_process else None,
        )

    ((first, last),) = run_distributed(1, ends)
    assert first is not None and last is not None and torch.equal(first, last)
    config = models.config(*TIED, "parallelism.pipeline=2")
    (first, _), (_, last) = run_distributed(2, ends)
    assert first is not None and last is not None and torch.equal(first, last)

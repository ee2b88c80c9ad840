"""Gradients of every part of a memory layer against finite differences, in float64."""

# Letters: s positions, b sequences, D hidden width, T tokens, K picks, E blocks, h cores, V value dimension.

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.memory_shape import memory_shape
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.gradients import check_gradients

Layers = Any  # the fixture's class lives in conftest.py
MARGIN = 1e-4
"""Between a score that is kept and one that is not; finite differences move scores by about 1e-6."""
SMALL = {
    "keys_per_side": 3,
    "top_m": 2,
    "heads": 2,
    "heads_per_query": 2,
    "key_dim": 4,
    "value_dim": 4,
    "query_conv_kernel": 2,
    "auxiliary_weight": 0,  # it enters in the backward pass alone, so finite differences do not see it
}
V2 = {"variant": "ultramem_v2", "pre_value_dim": 2}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def check_module(module: nn.Module, *inputs: Tensor, call: Callable[..., Any] | None = None) -> bool:
    """Gradients of ``inputs`` and of all parameters. ``call(module, *inputs)`` if it is not forward."""
    names = [name for name, _ in module.named_parameters()]
    values = [parameter.detach().double().clone().requires_grad_() for parameter in module.parameters()]
    assert all(value.isfinite().all() for value in values), "the parameters are set"
    wrapped = _Called(module, call or (lambda inner, *x: inner(*x)))

    def function(*leaves: Tensor) -> Any:
        weights = {f"inner.{name}": leaf for name, leaf in zip(names, leaves[len(inputs) :], strict=True)}
        return functional_call(wrapped, weights, leaves[: len(inputs)])

    return check_gradients(function, (*inputs, *values))


class _Called(nn.Module):
    """Lets ``functional_call`` reach a method that is not ``forward``."""

    def __init__(self, inner: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.inner, *inputs)


def with_weights(module: nn.Module, seed: int = 1) -> nn.Module:
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed + number))
    return module


# --- Parts ------------------------------------------------------------------------------------------------------------


def alone(check: Callable[[], None]) -> None:
    run_distributed(1, check)


def own_share() -> Any:
    """All tokens are this rank's; nothing precedes them."""
    from ultramem_megatron.memory.token_share import TokenShare

    assert dist.group.WORLD is not None
    return TokenShare(dist.group.WORLD, False)


@pytest.mark.parametrize("kernel", [1, 3, 6], ids=["one-tap", "three-taps", "more-taps-than-tokens"])
def test_convolution(megatron: ModuleType, kernel: int) -> None:
    def check() -> None:
        from ultramem_megatron.memory.query import CausalConv

        assert check_module(with_weights(CausalConv(3, kernel, own_share(), torch.float64)), draw(4, 2, 3))

    alone(check)


def test_query_projection(megatron: ModuleType) -> None:
    from ultramem_megatron.memory.query import QueryProjection

    assert check_module(with_weights(QueryProjection(3, 2, 4, torch.float64)), draw(5, 3))


def test_norm() -> None:
    from ultramem_megatron.memory.norm import QueryKeyNorm

    assert check_module(with_weights(QueryKeyNorm(4, torch.float64)), draw(3, 2, 4))


def test_output_projection(megatron: ModuleType) -> None:
    from ultramem_megatron.memory.layer import OutputProjection

    assert check_module(with_weights(OutputProjection(6, 5, torch.float64)), draw(4, 2, 3))


@pytest.mark.parametrize("key_layout", ["split", "full", "query_per_rank"])
@pytest.mark.parametrize("normalize", [True, False], ids=["norm", "no-norm"])
def test_best_of_sides(layers: Layers, key_layout: str, normalize: bool) -> None:
    """The scores of the candidates; which these are, finite differences must not change."""
    config = layers.config(**{**SMALL, "normalize_keys": normalize, "key_layout": key_layout})

    def check() -> None:
        from ultramem_megatron.memory.product_keys import ProductKeyRetrieval

        retrieval = with_weights(ProductKeyRetrieval(memory_shape(config), own_share(), torch.float64))
        x = draw(2, 1, config.model.hidden)
        direction = torch.ones(retrieval.shape.heads, 2, retrieval.shape.ranks, dtype=torch.float64)
        assert check_module(retrieval, x, call=lambda inner, x: inner.best_of_sides(x, direction)[1])

    alone(check)


@pytest.mark.parametrize("softmax", [False, True], ids=["scores", "softmax"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({"variant": "pkm"}, id="sums"),
        pytest.param({"cores": 1}, id="tucker"),
        pytest.param({"cores": 2, "tucker_rank": 2}, id="two-cores"),
        pytest.param({"key_dim": 3, "tucker_rank": 3, "side_top_m": 3, "top_m": 4}, id="rank-3-of-more-candidates"),
    ],
)
def test_scores_of_the_picks(layers: Layers, kind: dict[str, object], softmax: bool) -> None:
    """Additive scores, and those of Tucker cores; the slots stay where they are."""
    config = layers.config(**{**SMALL, **kind, "softmax": softmax})

    def check() -> None:
        layer, x = without_ties(layers, config)
        slots = layer.retrieval(x)[0]

        def scores(retrieval: nn.Module, x: Tensor) -> Tensor:
            found, scores_hTK = retrieval(x)
            assert torch.equal(found, slots)
            return scores_hTK

        assert check_module(layer.retrieval, x, call=scores)

    alone(check)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("blocks", [1, 3])
def test_pooling(megatron: ModuleType, blocks: int, cores: int) -> None:
    """Rows that repeat inside a token and between tokens; a block without a pick."""
    from ultramem_megatron.parallel.partition.pooling import pool_rows

    rows_TK = torch.tensor([[0, 2, 2, 1], [4, 0, 4, 4]])
    blocks_TK = torch.tensor([[0, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.uint8) % blocks

    def pooled(table: Tensor, scores: Tensor) -> Tensor:
        return pool_rows(table, rows_TK, blocks_TK, scores, blocks, range(4), 4)

    assert check_gradients(pooled, (draw(5, 4), draw(cores, 2, 4, seed=1)))


def test_inner_products(megatron: ModuleType) -> None:
    from ultramem_megatron.parallel.partition.pooling import multiply_rows

    rows_TK = torch.tensor([[0, 2, 2, 1], [4, 0, 4, 4]])
    assert check_gradients(
        lambda table, vectors: multiply_rows(table, rows_TK, vectors), (draw(5, 3), draw(2, 3, seed=1))
    )


def test_pre_values(layers: Layers) -> None:
    config = layers.config(**SMALL, **V2)

    def check() -> None:
        from ultramem_megatron.parallel.partition.base import Picks

        pre_values = with_weights(layers.build(config, dtype=torch.float64).pre_values)
        rows_TK = torch.tensor([[0, 8, 8], [3, 0, 3]], dtype=torch.int32)

        def weigh(module: nn.Module, x: Tensor, scores: Tensor) -> Tensor:
            return module(x, Picks(rows_TK, torch.zeros_like(rows_TK), scores)).scores_hTK

        assert check_module(pre_values, draw(2, config.model.hidden), draw(2, 2, 3, seed=1), call=weigh)

    alone(check)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_auxiliary_loss(rank: int, margin: float) -> None:
    from ultramem_megatron.memory.auxiliary_loss import core_penalty

    core = draw(2, 2, rank, rank)
    distance = (torch.linalg.svdvals(core.detach().sum(dim=1)) - margin).abs().min()
    assert distance > 1e-3, "away from the kink"
    assert check_gradients(lambda core: core_penalty(core, 0.5, margin), (core,))


# --- The whole layer --------------------------------------------------------------------------------------------------


def without_ties(layers: Layers, config: RunConfig) -> tuple[Any, Tensor]:
    """The first layer and input whose picks finite differences do not change."""
    for seed in range(50):
        layer = layers.build(config, dtype=torch.float64, seed=seed)
        x = draw(3, 1, config.model.hidden, seed=seed)
        if layers.oracle(config, layers.oracle_weights(layer), x).margin > MARGIN:
            return layer, x
    raise AssertionError("each seed has a tie: the case is too large")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({"variant": "pkm"}, id="pkm"),
        pytest.param({"variant": "pkm", "softmax": True, "expansion": 1, "value_dim": 16}, id="pkm-as-published"),
        pytest.param({}, id="ultramem"),
        pytest.param({"key_layout": "full", "softmax": True}, id="ultramem-full-keys-softmax"),
        pytest.param({"key_layout": "query_per_rank", "normalize_keys": False}, id="ultramem-query-per-rank"),
        pytest.param({**V2, "expansion": 1}, id="v2"),
        pytest.param({**V2, "expansion": 4, "key_layout": "query_per_rank"}, id="v2-expanded"),
    ],
)
def test_whole_layer(layers: Layers, kind: dict[str, object]) -> None:
    config = layers.config(**{**SMALL, **kind})

    def check() -> None:
        layer, x = without_ties(layers, config)
        assert check_module(layer, x)

    alone(check)

"""Pre-values: the weight of a pick is its score times the product of a row with the projected input."""

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.distributed import run_distributed

Layers = Any  # the fixture's class lives in conftest.py


def small(dtype: torch.dtype = torch.float32) -> Any:
    """D = 2, two channels, three rows: the projection swaps the channels of the input."""
    from ultramem_megatron.memory.pre_values import PreValues
    from ultramem_megatron.memory.value_table import ValueTable
    from ultramem_megatron.parallel.channel import Channel
    from ultramem_megatron.parallel.partition.base import TableShape
    from ultramem_megatron.parallel.partition.replicated import Replicated

    world = dist.group.WORLD
    assert world is not None
    partition = Replicated(TableShape(num_rows=3, value_dim=2), Channel(world))
    pre_values = PreValues(2, ValueTable(partition, world, dtype, torch.device("cpu")), dtype)
    with torch.no_grad():
        pre_values.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        pre_values.table.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 10.0], [1.0, 10.0]]))
    return pre_values


def weigh(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    from ultramem_megatron.parallel.partition.base import Picks

    rows = torch.tensor([[0, 1, 1], [2, 2, 0]], dtype=torch.int32)
    blocks = torch.tensor([[0, 1, 0], [1, 1, 0]], dtype=torch.uint8)
    scores = torch.tensor([[[1, 1, 2], [1, 0, -1]], [[3, 3, 3], [3, 3, 3]]], dtype=dtype)
    found = small(dtype)(torch.tensor([[2.0, 5.0], [1.0, 4.0]], dtype=dtype), Picks(rows, blocks, scores))
    assert torch.equal(found.rows_TK, rows) and torch.equal(found.blocks_TK, blocks)
    return found.scores_hTK.detach(), rows, scores


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_by_hand(megatron: ModuleType, dtype: torch.dtype) -> None:
    """Projected inputs (5, 2) and (4, 1); products 5, 20, 20 and 14, 14, 4; every core's score is multiplied."""
    ((scores, _, _),) = run_distributed(1, weigh, dtype)
    assert scores.dtype is dtype
    assert scores.tolist() == [[[5, 20, 40], [14, 0, -4]], [[15, 60, 60], [42, 42, 12]]]


def test_there_is_no_activation(layers: Layers) -> None:
    """A slot is an expert of one hidden unit: negated inputs have negated weights (arXiv 2508.18756, eq. 15)."""
    config = layers.config(variant="ultramem_v2", pre_value_dim=6)

    def both() -> tuple[Tensor, Tensor]:
        layer = layers.build(config)
        x = torch.randn(6, config.model.hidden)
        picks = layer.retrieve(x.unsqueeze(1))
        return tuple(layer.pre_values(sign * x, picks).scores_hTK.detach() for sign in (1, -1))  # type: ignore[return-value]

    ((positive, negative),) = run_distributed(1, both)
    assert torch.equal(negative, -positive) and (positive < 0).any() and (positive > 0).any()


def observed(layers: Any, config: RunConfig) -> tuple[Tensor, Tensor]:
    layer, shown = layers.build(config), []
    layer.observer = lambda picks, _: shown.append(picks.scores_hTK.detach())
    x = torch.randn(4, 2, config.model.hidden)
    with torch.no_grad():
        layer(x)
        return shown[0], layer.retrieve(x).scores_hTK


def test_metrics_see_the_scores_that_chose(layers: Any) -> None:
    """Not those that pre-values have multiplied: they are of either sign, and say nothing of the retrieval."""
    ((shown, retrieved),) = run_distributed(1, observed, layers, layers.config(variant="ultramem_v2", pre_value_dim=4))
    assert torch.equal(shown, retrieved)

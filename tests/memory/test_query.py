"""Convolution, query projection and norm, each against its definition."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from ultramem_megatron.testing.distributed import run_distributed

# Letters: s positions, b sequences, D hidden width.


def convolve(x_sbD: Tensor, weight: Tensor) -> Tensor:
    import torch.distributed as dist

    from ultramem_megatron.memory.query import CausalConv
    from ultramem_megatron.memory.token_share import TokenShare

    assert dist.group.WORLD is not None
    conv = CausalConv(*weight.shape, TokenShare(dist.group.WORLD, False), weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(weight)
        return conv(x_sbD)


def test_convolution_looks_back_only_and_keeps_sequences_apart(megatron: ModuleType) -> None:
    """An impulse at position 2 of sequence 1, channel 0, comes out weighted by the taps from the last to the first."""
    x = torch.zeros(7, 2, 2)
    x[2, 1, 0] = 1.0
    (out,) = run_distributed(1, convolve, x, torch.tensor([[1.0, 10.0, 100.0], [5.0, 5.0, 5.0]]))
    expected = torch.zeros(7, 2, 2)
    expected[2, 1, 0], expected[3, 1, 0], expected[4, 1, 0] = 100.0, 10.0, 1.0
    assert torch.equal(out, expected)


def test_a_sequence_shorter_than_the_kernel(megatron: ModuleType) -> None:
    (out,) = run_distributed(1, convolve, torch.ones(1, 1, 1), torch.tensor([[1.0, 2.0, 4.0]]))
    assert out.tolist() == [[[4.0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_is_computed_in_fp32(dtype: torch.dtype) -> None:
    from ultramem_megatron.memory.norm import QUERY_KEY_EPSILON, QueryKeyNorm

    norm = QueryKeyNorm(6, dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 7.0))
    x = torch.randn(3, 4, 6).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + QUERY_KEY_EPSILON).sqrt() * torch.arange(1.0, 7.0)
    found = norm(x)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_queries_are_rows_then_columns_of_each_query(megatron: ModuleType) -> None:
    from ultramem_megatron.memory.query import QueryProjection

    projection = QueryProjection(hidden=1, queries=2, key_dim=3, dtype=torch.float32)
    with torch.no_grad():
        projection.weight.copy_(torch.arange(12.0).unsqueeze(1))
    queries = projection(torch.tensor([[1.0], [2.0]]))
    assert queries.shape == (2, 2, 2, 3)
    assert queries[0].tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert torch.equal(queries[1], 2 * queries[0])


@pytest.mark.parametrize(("tokens", "sequences", "taps"), [(6, 3, 4), (1, 1, 5), (4, 2, 1)])
def test_convolution_and_its_gradients_are_those_of_the_reference(
    megatron: ModuleType, tokens: int, sequences: int, taps: int
) -> None:
    x, weight = torch.randn(tokens, sequences, 5, dtype=torch.float64), torch.randn(5, taps, dtype=torch.float64)
    ((found, expected),) = run_distributed(1, convolve_twice, x, weight, torch.randn_like(x))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def convolve_twice(x_sbD: Tensor, weight: Tensor, cotangent_sbD: Tensor) -> list[tuple[Tensor, ...]]:
    """Output and gradients, of the layer's convolution and of the reference."""
    import torch.distributed as dist

    from ultramem_megatron.memory.query import CausalConv, convolve_reference
    from ultramem_megatron.memory.token_share import TokenShare

    assert dist.group.WORLD is not None
    conv = CausalConv(*weight.shape, TokenShare(dist.group.WORLD, False), weight.dtype)
    conv.weight.data.copy_(weight)
    padded_pbD = torch.cat([x_sbD.new_zeros(weight.shape[1] - 1, *x_sbD.shape[1:]), x_sbD])
    results = []
    for out, leaves in (
        (conv(x_sbD.requires_grad_()), (x_sbD, conv.weight)),
        (convolve_reference(padded_pbD.requires_grad_(), weight.requires_grad_()), (padded_pbD, weight)),
    ):
        x_grad, weight_grad = torch.autograd.grad(out, leaves, cotangent_sbD)
        # the reference has a gradient of the zeros, too
        results.append((out.detach(), x_grad[len(x_grad) - len(x_sbD) :], weight_grad))
    return results

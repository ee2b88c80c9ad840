"""The norm of queries and keys: its gradient is written out on CPUs, and is that of the definition."""

# Letters: N vectors, w their width.

import pytest
import torch
from torch import nn

from ultramem_megatron.memory.norm import QueryKeyNorm, norm_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_definition(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = QueryKeyNorm(6, dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6, generator=generator))
    x = torch.randn(3, 4, 6, generator=generator).to(dtype).requires_grad_()
    found = norm(x)
    expected = norm_reference(x.to(found.dtype), norm.weight.to(found.dtype))
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(found.shape, generator=generator).to(found.dtype)
    gradients = torch.autograd.grad(found, (x, norm.weight), cotangent)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (x, norm.weight), cotangent), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_of_vectors_that_are_nearly_zero() -> None:
    x_Nw = torch.tensor([[0.0, 0.0], [1e-4, -2e-4], [3.0, 1e-5]], dtype=torch.float64, requires_grad=True)
    norm = QueryKeyNorm(2, torch.float64)
    nn.init.ones_(norm.weight)
    assert torch.autograd.gradcheck(norm, (x_Nw,), eps=1e-9, atol=1e-3)

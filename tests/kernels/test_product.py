"""Products by oneDNN are those of float64, with their gradients, whatever the strides; small ones are MKL's."""

import pytest
import torch
from torch import Tensor

from ultramem_kernels.product import LEAST_PRODUCTS, linear, product

ROWS, INPUTS, OUTPUTS = 250, 130, 270
"""Enough for oneDNN, and multiples of nothing."""


def whole(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns)


def transposed(rows: int, columns: int) -> Tensor:
    return torch.randn(columns, rows).t()


def strided(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, 2, columns)[:, 1]


@pytest.mark.parametrize("left", [whole, transposed, strided])
@pytest.mark.parametrize("right", [whole, transposed, strided])
def test_a_product_of_any_strides(left, right) -> None:
    assert ROWS * INPUTS * OUTPUTS >= LEAST_PRODUCTS
    x, weight = left(ROWS, INPUTS), right(OUTPUTS, INPUTS)
    torch.testing.assert_close(product(x, weight).double(), x.double() @ weight.double().t(), rtol=1e-5, atol=1e-4)


def test_gradients_are_those_of_float64() -> None:
    x, weight, cotangent = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS), torch.randn(ROWS, OUTPUTS)
    found = gradients(x, weight, cotangent)
    expected = gradients(x.double(), weight.double(), cotangent.double())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)


def gradients(x: Tensor, weight: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
    leaves = (x.clone().requires_grad_(), weight.clone().requires_grad_())
    return torch.autograd.grad(linear(*leaves), leaves, cotangent)


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    x, weight = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS, requires_grad=True)
    linear(x, weight).sum().backward()
    assert weight.grad is not None and x.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_types_are_left_to_pytorch(dtype: torch.dtype) -> None:
    x, weight = torch.randn(ROWS, INPUTS, dtype=dtype), torch.randn(OUTPUTS, INPUTS, dtype=dtype)
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))


def test_a_compiled_model_has_it_in_one_graph() -> None:
    x, weight = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS, requires_grad=True)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), linear(x, weight), rtol=1e-5, atol=1e-4)

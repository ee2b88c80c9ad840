"""Inner products on a CPU and, interpreted, by their Triton kernel: against their references, with gradients."""

import pytest
import torch

from ultramem_kernels.arguments import ArgumentError
from ultramem_kernels.products import (
    multiply_groups,
    multiply_groups_reference,
    multiply_rows,
    multiply_rows_reference,
)
from ultramem_megatron.testing.tolerances import assert_agrees

# Letters: N rows of the table, V its columns, T tokens, K picks, A picks in all, G groups.

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [
    pytest.param((3, 19, 11, 48), id="two tiles of picks"),
    pytest.param((2, 5, 7, 72), id="two tiles of columns"),
    pytest.param((0, 4, 5, 16), id="no tokens"),
    pytest.param((3, 0, 5, 16), id="no picks"),
]
GROUP_A = torch.tensor([0] * 18 + [2] * 3 + [3] * 4)  # groups 1 and 4 have no picks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tokens, picks, count, width = shape
    given = [torch.randn(n, width).to(dtype).requires_grad_() for n in (count, tokens)]
    wide = [x.detach().double().requires_grad_() for x in given]
    rows_TK = torch.randint(count, (tokens, picks), dtype=torch.int32)
    found = multiply_rows(given[0], rows_TK, given[1])
    expected = multiply_rows_reference(wide[0], rows_TK, wide[1])
    compare(found, expected, given, wide, width)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_by_group(dtype: torch.dtype) -> None:
    given = [torch.randn(n, 24).to(dtype).requires_grad_() for n in (9, 5)]
    wide = [x.detach().double().requires_grad_() for x in given]
    rows_A = torch.randint(9, GROUP_A.shape)
    found = multiply_groups(given[0], rows_A, GROUP_A, given[1])
    expected = multiply_groups_reference(wide[0], rows_A, GROUP_A, wide[1])
    compare(found, expected, given, wide, 24)


def compare(
    found: torch.Tensor,
    expected: torch.Tensor,
    given: list[torch.Tensor],
    wide: list[torch.Tensor],
    width: int,
) -> None:
    assert found.dtype is torch.float32
    assert_agrees(found, expected, computed_in=torch.float32, summed_terms=width)
    cotangent = torch.randn(found.shape)
    found.backward(cotangent)
    expected.backward(cotangent.double())
    for x, oracle in zip(given, wide, strict=True):
        assert x.grad is not None and oracle.grad is not None and x.grad.dtype is x.dtype
        assert_agrees(x.grad, oracle.grad, computed_in=x.dtype, summed_terms=20)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from ultramem_kernels.products import triton_kernel

    tokens, picks, count, width = shape
    table, vectors = (torch.randn(n, width).to(dtype) for n in (count, tokens))
    rows_TK = torch.randint(count, (tokens, picks), dtype=torch.int32)
    expected = multiply_rows_reference(table.double(), rows_TK, vectors.double())
    found = triton_kernel.multiply_rows(table, rows_TK, vectors)
    assert_agrees(found, expected, computed_in=torch.float32, summed_terms=width)


@pytest.mark.usefixtures("interpreter")
def test_the_kernel_by_group() -> None:
    from ultramem_kernels.products import triton_kernel

    table, vectors, rows_A = torch.randn(9, 24), torch.randn(5, 24), torch.randint(9, GROUP_A.shape)
    expected = multiply_groups_reference(table.double(), rows_A, GROUP_A, vectors.double())
    found = triton_kernel.multiply_groups(table, rows_A, GROUP_A, vectors)
    assert_agrees(found, expected, computed_in=torch.float32, summed_terms=24)


def test_operators_are_well_formed() -> None:
    table, vectors = (torch.randn(n, 16, requires_grad=True) for n in (7, 5))
    rows_TK = torch.randint(7, (5, 3), dtype=torch.int32)
    torch.library.opcheck(torch.ops.ultramem.multiply_rows.default, (table, rows_TK, vectors))
    group_A = torch.arange(5).repeat_interleave(3)
    torch.library.opcheck(torch.ops.ultramem.multiply_groups.default, (table, rows_TK.view(-1), group_A, vectors))


def test_bad_arguments_are_named() -> None:
    table, rows_TK, vectors = torch.randn(5, 8), torch.zeros(2, 3, dtype=torch.int32), torch.randn(2, 8)
    with pytest.raises(ArgumentError, match=r"vectors_TV has shape \[2, 7\]; expected \[2, 8\]"):
        multiply_rows(table, rows_TK, vectors[:, :7])
    with pytest.raises(ArgumentError, match=r"vectors_TV is torch.bfloat16; expected torch.float32"):
        multiply_rows(table, rows_TK, vectors.bfloat16())
    with pytest.raises(ArgumentError, match=r"group_A is torch.int32; expected torch.int64"):
        multiply_groups(table, rows_TK.view(-1), torch.zeros(6, dtype=torch.int32), vectors)

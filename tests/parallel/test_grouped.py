"""Sums and products by group, on one process, against a loop over the picks in float64."""

import pytest
import torch
from torch import Tensor

from ultramem_kernels.products import torch_path
from ultramem_megatron.parallel.partition.grouped import multiply_groups, pool_groups
from ultramem_megatron.testing.tolerances import assert_agrees

# Letters: N rows, V columns, A picks, G groups of them, h score cores.

N, V, A, G = 7, 6, 11, 5
DTYPES = [torch.float32, torch.bfloat16]
ROWS_A = torch.randint(N, (A,), generator=torch.Generator().manual_seed(0)).int()
GROUP_A = torch.tensor([0, 0, 1, 1, 1, 1, 3, 3, 4, 4, 4])  # group 2 has no picks


def sums_by_definition(table_NV: Tensor, scores_Ah: Tensor) -> Tensor:
    weights_AV = scores_Ah.repeat_interleave(V // scores_Ah.shape[1], dim=1)
    by_group = [[weights_AV[a] * table_NV[ROWS_A[a]] for a in range(A) if GROUP_A[a] == g] for g in range(G)]
    return torch.stack([sum(terms, torch.zeros(V, dtype=table_NV.dtype)) for terms in by_group])


def products_by_definition(table_NV: Tensor, vectors_GV: Tensor) -> Tensor:
    return torch.stack([table_NV[ROWS_A[a]] @ vectors_GV[GROUP_A[a]] for a in range(A)])


@pytest.fixture(params=[1, 3 * V, 2**24], ids=["one pick a part", "three", "all"], autouse=True)
def part_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_path, "PART_ELEMENTS", request.param)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums(dtype: torch.dtype, cores: int) -> None:
    table, scores = torch.randn(N, V).to(dtype).requires_grad_(), torch.randn(A, cores).to(dtype).requires_grad_()
    found = pool_groups(table, ROWS_A, GROUP_A, scores, G)
    assert found.dtype is dtype
    compare(found, sums_by_definition, (table, scores), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products(dtype: torch.dtype) -> None:
    table, vectors = torch.randn(N, V).to(dtype).requires_grad_(), torch.randn(G, V).to(dtype).requires_grad_()
    found = multiply_groups(table, ROWS_A, GROUP_A, vectors)
    assert found.dtype is torch.float32
    compare(found, products_by_definition, (table, vectors), dtype)


def compare(found: Tensor, definition, inputs: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    cotangent = torch.randn(found.shape).to(found.dtype)
    found.backward(cotangent)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = definition(*exact)
    expected.backward(cotangent.double())
    assert_agrees(found, expected, computed_in=found.dtype)
    for x, oracle in zip(inputs, exact, strict=True):
        assert x.grad is not None and oracle.grad is not None and x.grad.dtype is dtype
        assert_agrees(x.grad, oracle.grad, computed_in=dtype)


def test_what_needs_no_gradient_gets_none() -> None:
    table, scores = torch.randn(N, V), torch.randn(A, 2, requires_grad=True)
    pool_groups(table, ROWS_A, GROUP_A, scores, G).sum().backward()
    vectors = torch.randn(G, V, requires_grad=True)
    multiply_groups(table, ROWS_A, GROUP_A, vectors).sum().backward()
    assert table.grad is None and scores.grad is not None and vectors.grad is not None


def test_no_picks() -> None:
    table = torch.randn(N, V, requires_grad=True)
    nothing = torch.empty(0, dtype=torch.int64)
    sums = pool_groups(table, nothing, nothing, torch.empty(0, 2), 0)
    products = multiply_groups(table, nothing, nothing, torch.empty(0, V))
    assert (sums.shape, products.shape) == ((0, V), (0,))
    (sums.sum() + products.sum()).backward()
    assert table.grad is not None and table.grad.count_nonzero() == 0

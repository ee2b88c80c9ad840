"""Reading rows and pooling them, on one process, against cases by hand and the oracle."""

import itertools

import pytest
import torch

from ultramem_megatron.parallel.partition.pooling import pool, read_rows
from ultramem_megatron.testing.reference_layer import reference_pooling
from ultramem_megatron.testing.tolerances import assert_agrees

# Letters: N rows, V value dimension, v some of its columns, T tokens, K picks, E blocks, h cores.

N, V, T, K = 9, 12, 4, 5


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(T, K), (7,), (0, K), (0,)], ids=str)
def test_rows_are_read_in_any_shape(shape: tuple[int, ...], index_type: torch.dtype) -> None:
    table = torch.randn(N, V)
    rows = torch.randint(N, shape).to(index_type)
    found = read_rows(table, rows)
    assert found.shape == (*shape, V)
    assert torch.equal(found, table[rows.long()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeated_rows_add_their_gradients_in_fp32(dtype: torch.dtype) -> None:
    """256 + 1 + 1 is 256 in bf16 if rounded after each addition."""
    table = torch.zeros(N, 1, dtype=dtype, requires_grad=True)
    read_rows(table, torch.tensor([3, 3, 5, 3], dtype=torch.int32)).backward(
        torch.tensor([[256.0], [1.0], [7.0], [1.0]], dtype=dtype)
    )
    expected = torch.zeros(N, 1, dtype=dtype)
    expected[3], expected[5] = 258, 7
    assert table.grad is not None and table.grad.dtype is dtype
    assert torch.equal(table.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_main_grad_accumulates_in_place(dtype: torch.dtype) -> None:
    table = torch.nn.Parameter(torch.randn(N, 2).to(dtype))
    main_grad = torch.full((N, 2), 0.5)
    table.main_grad = main_grad  # type: ignore[attr-defined]
    for count in (1, 2, 3):
        read_rows(table, torch.tensor([4, 4])).sum().backward()
        assert table.main_grad is main_grad  # type: ignore[attr-defined]
        assert main_grad[4].tolist() == [0.5 + 2 * count] * 2
        assert main_grad[:4].eq(0.5).all() and main_grad[5:].eq(0.5).all()
        assert table.grad is not None and table.grad.untyped_storage().size() == 0
        assert table.grad.shape == table.shape and table.grad.dtype is dtype
        table.grad = None


def test_a_table_without_gradient_is_read() -> None:
    table = torch.randn(N, V)
    with torch.no_grad():
        assert not read_rows(table.requires_grad_(), torch.tensor([1])).requires_grad


@pytest.mark.parametrize(("blocks", "cores"), itertools.product([1, 3], [1, 2, 3]))
@pytest.mark.parametrize("columns", [range(12), range(3, 5), range(4, 8), range(11, 12)], ids=str)
def test_pool_equals_the_oracle_on_its_columns(columns: range, blocks: int, cores: int) -> None:
    """Columns may lie inside one core's slice, or begin and end in different ones."""
    table_NV, rows_TK = torch.randn(N, V), torch.randint(N, (T, K))
    blocks_TK, scores_hTK = torch.randint(blocks, (T, K)), torch.randn(cores, T, K)
    part = slice(columns.start, columns.stop)
    found = pool(table_NV[rows_TK][:, :, part], blocks_TK.to(torch.uint8), scores_hTK, blocks, columns, V)
    expected = reference_pooling(table_NV.double(), rows_TK, blocks_TK, scores_hTK.double(), num_blocks=blocks)
    assert_agrees(found, expected[:, :, part], computed_in=torch.float32)


def test_pool_by_hand() -> None:
    """One token, picks of rows (1 10) (2 20) (4 40) with weights 1 1 1 for the first column and 2 3 5 for the second,
    the middle one into block 1."""
    rows = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]])
    scores = torch.tensor([[[1.0, 1.0, 1.0]], [[2.0, 3.0, 5.0]]])
    pooled = pool(rows, torch.tensor([[0, 1, 0]]), scores, 2, range(2), 2)
    assert pooled.tolist() == [[[5.0, 220.0], [2.0, 60.0]]]


def test_pool_sums_bf16_in_fp32() -> None:
    rows = torch.tensor([[[256.0], [1.0], [1.0]]], dtype=torch.bfloat16)
    ones = torch.ones(1, 1, 3, dtype=torch.bfloat16)
    pooled = pool(rows, torch.zeros(1, 3, dtype=torch.uint8), ones, 1, range(1), 1)
    assert pooled.dtype is torch.bfloat16
    assert pooled.item() == 258


def test_pool_of_no_tokens() -> None:
    pooled = pool(torch.zeros(0, K, V), torch.zeros(0, K, dtype=torch.uint8), torch.zeros(2, 0, K), 4, range(V), V)
    assert pooled.shape == (0, 4, V)

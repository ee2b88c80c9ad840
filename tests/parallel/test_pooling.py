"""Reading rows, pooling and multiplying them, on one process, against cases by hand and the oracle."""

import itertools
import weakref

import pytest
import torch
from torch import Tensor

from ultramem_kernels.products import torch_path
from ultramem_megatron.parallel.partition.pooling import multiply_rows, pool_rows, read_rows
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


def test_rows_from_elsewhere_are_not_kept() -> None:
    table = torch.randn(N, V, requires_grad=True)
    came = table * 2
    still_there = weakref.ref(came)
    read = read_rows(came, torch.tensor([1, 3, 1]))
    del came
    assert still_there() is None
    read.sum().backward()
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == [0, 4, 0, 2, 0, 0, 0, 0, 0]


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
    shard_Nv = table_NV[:, part].contiguous()
    found = pool_rows(shard_Nv, rows_TK, blocks_TK.to(torch.uint8), scores_hTK, blocks, columns, V)
    expected = reference_pooling(table_NV.double(), rows_TK, blocks_TK, scores_hTK.double(), num_blocks=blocks)
    assert_agrees(found, expected[:, :, part], computed_in=torch.float32)


def test_pool_by_hand() -> None:
    """One token, picks of rows (1 10) (2 20) (4 40) with weights 1 1 1 for the first column and 2 3 5 for the second,
    the middle one into block 1."""
    table = torch.tensor([[4.0, 40.0], [2.0, 20.0], [1.0, 10.0]])
    scores = torch.tensor([[[1.0, 1.0, 1.0]], [[2.0, 3.0, 5.0]]])
    blocks = torch.tensor([[0, 1, 0]], dtype=torch.uint8)
    pooled = pool_rows(table, torch.tensor([[2, 1, 0]]), blocks, scores, 2, range(2), 2)
    assert pooled.tolist() == [[[5.0, 220.0], [2.0, 60.0]]]


def test_pool_sums_bf16_in_fp32() -> None:
    table = torch.tensor([[256.0], [1.0]], dtype=torch.bfloat16)
    ones = torch.ones(1, 1, 3, dtype=torch.bfloat16)
    pooled = pool_rows(table, torch.tensor([[0, 1, 1]]), torch.zeros(1, 3, dtype=torch.uint8), ones, 1, range(1), 1)
    assert pooled.dtype is torch.bfloat16
    assert pooled.item() == 258


def test_pool_of_no_tokens() -> None:
    rows, blocks = torch.zeros(0, K, dtype=torch.int32), torch.zeros(0, K, dtype=torch.uint8)
    pooled = pool_rows(torch.zeros(N, V), rows, blocks, torch.zeros(2, 0, K), 4, range(V), V)
    assert pooled.shape == (0, 4, V)


@pytest.mark.parametrize("cores", [1, 3])
def test_gradients_of_a_lookup_are_its_derivatives(cores: int) -> None:
    rows_TK, blocks_TK = torch.randint(N, (T, K)), torch.randint(2, (T, K), dtype=torch.uint8)
    table = torch.randn(N, V, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(cores, T, K, dtype=torch.float64, requires_grad=True)

    def look_up(table_NV: Tensor, scores_hTK: Tensor) -> Tensor:
        return pool_rows(table_NV, rows_TK, blocks_TK, scores_hTK, 2, range(V), V)

    assert torch.autograd.gradcheck(look_up, (table, scores))


def test_a_lookup_adds_into_main_grad_and_keeps_no_rows() -> None:
    kept: list[int] = []

    def count(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    table = torch.nn.Parameter(torch.randn(N, V))
    table.main_grad = torch.ones(N, V)  # type: ignore[attr-defined]
    rows, blocks, scores = torch.tensor([[3, 3]]), torch.zeros(1, 2, dtype=torch.uint8), torch.tensor([[[2.0, 5.0]]])
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        pooled = pool_rows(table, rows, blocks, scores, 1, range(V), V)
    pooled.sum().backward()
    assert sorted(kept) == [2, 2, 2, N * V], "rows, blocks, scores, and the table itself"
    assert table.main_grad[3].eq(8).all() and table.main_grad.sum() == N * V + 7 * V  # type: ignore[attr-defined]
    assert table.grad is not None and table.grad.untyped_storage().size() == 0


# --- Inner products ---------------------------------------------------------------------------------------------------


def test_products_by_hand() -> None:
    """Vectors (1 10) and (2 0) against rows (1 2) (3 4) (5 6); a gradient of 1 for each pick, of 10 for the last."""
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    vectors = torch.tensor([[1.0, 10.0], [2.0, 0.0]], requires_grad=True)
    products = multiply_rows(table, torch.tensor([[0, 2], [2, 2]], dtype=torch.int32), vectors)
    assert products.tolist() == [[21.0, 65.0], [10.0, 10.0]]
    products.backward(torch.tensor([[1.0, 1.0], [1.0, 10.0]]))
    assert table.grad is not None and vectors.grad is not None
    assert table.grad.tolist() == [[1.0, 10.0], [0.0, 0.0], [23.0, 10.0]]
    assert vectors.grad.tolist() == [[6.0, 8.0], [55.0, 66.0]]


@pytest.mark.parametrize("part_elements", [1, 2 * K * V, 3 * K * V, 2**24], ids=["token", "halves", "uneven", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_do_not_depend_on_the_parts(
    monkeypatch: pytest.MonkeyPatch, part_elements: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch_path, "PART_ELEMENTS", part_elements)
    table, vectors = (torch.randn(n, V).to(dtype).requires_grad_() for n in (N, T))
    rows_TK, cotangent_TK = torch.randint(N, (T, K)), torch.randn(T, K)
    products = multiply_rows(table, rows_TK, vectors)
    products.backward(cotangent_TK)

    wide = [x.detach().double().requires_grad_() for x in (table, vectors)]
    expected = (wide[0][rows_TK] * wide[1].unsqueeze(1)).sum(dim=2)
    expected.backward(cotangent_TK.double())
    assert products.dtype is torch.float32
    assert_agrees(products, expected.detach(), computed_in=torch.float32)
    for given, exact in zip((table, vectors), wide, strict=True):
        assert given.grad is not None and exact.grad is not None
        assert given.grad.dtype is dtype
        assert_agrees(given.grad, exact.grad, computed_in=dtype)


def test_gradients_of_products_are_their_derivatives() -> None:
    rows_TK = torch.randint(N, (T, K))
    inputs = [torch.randn(n, V, dtype=torch.float64, requires_grad=True) for n in (N, T)]
    assert torch.autograd.gradcheck(lambda table, vectors: multiply_rows(table, rows_TK, vectors), inputs)


def test_products_of_bf16_are_exact_in_fp32() -> None:
    """1 + 2^-8 has no bf16, and its square no bf16 either: only the factors are rounded."""
    table = torch.tensor([[1.0, 2.0**-8]], dtype=torch.bfloat16)
    products = multiply_rows(table, torch.tensor([[0]]), torch.ones(1, 2, dtype=torch.bfloat16))
    assert products.item() == 1 + 2.0**-8


def test_products_of_no_tokens() -> None:
    table, vectors = torch.randn(N, V, requires_grad=True), torch.randn(0, V, requires_grad=True)
    products = multiply_rows(table, torch.zeros(0, K, dtype=torch.int32), vectors)
    products.sum().backward()
    assert products.shape == (0, K)
    assert table.grad is not None and table.grad.count_nonzero() == 0
    assert vectors.grad is not None and vectors.grad.shape == (0, V)


def test_the_rows_of_products_are_not_kept_for_the_backward_pass() -> None:
    kept: list[int] = []

    def count(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    table, vectors = torch.randn(N, V, requires_grad=True), torch.randn(T, V, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        multiply_rows(table, torch.randint(N, (T, K)), vectors)
    assert sorted(kept) == sorted([N * V, T * K, T * V]), "the table itself, row numbers, vectors"


def test_only_who_asks_gets_a_gradient_of_products() -> None:
    rows_TK = torch.randint(N, (T, K))
    frozen, vectors = torch.nn.Parameter(torch.randn(N, V), requires_grad=False), torch.randn(T, V, requires_grad=True)
    frozen.main_grad = torch.zeros(N, V)  # type: ignore[attr-defined]
    multiply_rows(frozen, rows_TK, vectors).sum().backward()
    assert frozen.main_grad.count_nonzero() == 0 and frozen.grad is None  # type: ignore[attr-defined]
    assert vectors.grad is not None
    torch.testing.assert_close(vectors.grad, frozen[rows_TK].sum(dim=1))

    table = torch.nn.Parameter(torch.randn(N, V))
    table.main_grad = torch.ones(N, V)  # type: ignore[attr-defined]
    constant = torch.randn(T, V)
    multiply_rows(table, rows_TK, constant).sum().backward()
    expected = torch.ones(N, V).index_add(0, rows_TK.flatten(), constant.repeat_interleave(K, dim=0))
    torch.testing.assert_close(table.main_grad, expected)
    assert table.grad is not None and table.grad.untyped_storage().size() == 0


def test_a_table_that_changed_before_the_backward_pass_is_refused() -> None:
    """The rows are read again, and would be others."""
    table, vectors = torch.randn(N, V, requires_grad=True), torch.randn(T, V, requires_grad=True)
    products = multiply_rows(table, torch.randint(N, (T, K)), vectors)
    with torch.no_grad():
        table.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        products.sum().backward()

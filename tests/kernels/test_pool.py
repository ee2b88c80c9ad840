"""``pool``, ``pool_groups`` and ``pool_backward`` on a CPU: against their references, in output and gradients."""

import pytest
import torch
from torch import Tensor

from ultramem_kernels.arguments import ArgumentError
from ultramem_kernels.index_plan import make_plan, sort_picks
from ultramem_kernels.pool import (
    add_rows,
    group_of,
    pool,
    pool_backward,
    pool_groups,
    pool_groups_reference,
    pool_reference,
    torch_path,
)
from ultramem_megatron.testing.tolerances import assert_agrees

# Letters: N rows of the table, V value dimension, T tokens, K picks, E blocks, h cores, A picks in all, G groups.

CASES = [
    pytest.param((1, 1, 1, 8, 1, 1), id="smallest"),
    pytest.param((7, 5, 11, 24, 3, 3), id="nothing divides, rows repeat"),
    pytest.param((9, 4, 300, 48, 4, 2), id="empty blocks"),
    pytest.param((0, 4, 8, 16, 4, 2), id="no tokens"),
    pytest.param((3, 0, 8, 16, 2, 1), id="no picks"),
]
DTYPES = [torch.float32, torch.bfloat16]


def draw(case: tuple[int, ...], table_type: torch.dtype, score_type: torch.dtype) -> tuple[Tensor, ...]:
    tokens, picks, rows, width, blocks, cores = case
    return (
        torch.randn(rows, width).to(table_type).requires_grad_(),
        torch.randint(rows, (tokens, picks), dtype=torch.int32),
        torch.randint(blocks, (tokens, picks), dtype=torch.uint8),
        torch.randn(cores, tokens, picks).to(score_type).requires_grad_(),
    )


def exact(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs)


@pytest.mark.parametrize("score_type", DTYPES, ids=str)
@pytest.mark.parametrize("table_type", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_pool_equals_its_reference(case: tuple[int, ...], table_type: torch.dtype, score_type: torch.dtype) -> None:
    inputs, blocks = draw(case, table_type, score_type), case[4]
    found = pool(*inputs, blocks)
    wide = exact(*inputs)
    expected = pool_reference(*wide, blocks)
    assert found.dtype is table_type
    assert_agrees(found, expected, computed_in=table_type, summed_terms=1 + case[1])
    cotangent = torch.randn(found.shape).to(table_type)
    found.backward(cotangent)
    expected.backward(cotangent.double())
    for x, oracle, dtype in ((inputs[0], wide[0], table_type), (inputs[3], wide[3], score_type)):
        assert x.grad is not None and oracle.grad is not None and x.grad.dtype is dtype
        assert_agrees(x.grad, oracle.grad, computed_in=dtype, summed_terms=case[3])


@pytest.mark.parametrize("part_elements", [1, 48, 2**19], ids=["one row", "some", "all"])
def test_groups_equal_their_reference_in_any_parts(monkeypatch: pytest.MonkeyPatch, part_elements: int) -> None:
    monkeypatch.setattr(torch_path, "PART_ELEMENTS", part_elements)
    table, rows = torch.randn(6, 12, requires_grad=True), torch.tensor([0, 5, 5, 2, 5, 1], dtype=torch.int32)
    groups, scores = torch.tensor([0, 0, 0, 2, 2, 4]), torch.randn(2, 6, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        given = table.detach().to(dtype).requires_grad_()
        found = pool_groups(given, rows, groups, scores, 6)
        wide_table, wide_scores = exact(given, scores)
        expected = pool_groups_reference(wide_table, rows, groups, wide_scores, 6)
        assert_agrees(found, expected, computed_in=dtype)
        assert found[[1, 3, 5]].count_nonzero() == 0
        found.sum().backward()
        expected.sum().backward()
        assert given.grad is not None and scores.grad is not None
        assert_agrees(given.grad, wide_table.grad, computed_in=dtype)
        assert_agrees(scores.grad, wide_scores.grad, computed_in=torch.float32, summed_terms=12)
        scores.grad = None


def test_the_gradient_is_added_to_one_that_is_there_with_the_same_bits_each_time() -> None:
    table, rows, blocks, scores = draw((40, 8, 13, 16, 4, 2), torch.bfloat16, torch.float32)
    arguments = (torch.randn(160, 16), table.detach(), rows.view(-1), group_of(blocks, 4), scores.detach().flatten(1))
    found = [torch.full((13, 16), 0.5) for _ in range(2)]
    for target in found:
        assert pool_backward(*arguments, table_grad_NV=target, scores_need_grad=False) is None
    assert torch.equal(*found)
    weighed = arguments[0].view(-1, 2, 8)[arguments[3]].double() * arguments[4].t().double().unsqueeze(2)
    expected = torch.full((13, 16), 0.5, dtype=torch.float64).index_add_(0, rows.view(-1), weighed.flatten(1))
    assert_agrees(found[0], expected, computed_in=torch.float32, summed_terms=40)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_added_to_what_is_there(dtype: torch.dtype) -> None:
    rows, given, into = torch.tensor([3, 0, 3], dtype=torch.int32), torch.randn(3, 8).to(dtype), torch.ones(5, 8)
    expected = into.double().index_add(0, rows, given.double())
    add_rows(into, rows, given)
    assert_agrees(into, expected, computed_in=torch.float32)
    with pytest.raises(ArgumentError, match=r"given_AV has shape \[3, 8\]; expected \[2, 8\]"):
        add_rows(into, rows[:2], given)
    with pytest.raises(ArgumentError, match=r"plan.rows_A has shape \[2\]; expected \[3\]"):
        add_rows(into, rows, given, make_plan(sort_picks(rows[:2]), 5))


@pytest.mark.parametrize("blocks", [1, 4])
def test_operators_are_well_formed(blocks: int) -> None:
    table, rows, chosen, scores = draw((5, 3, 7, 16, blocks, 2), torch.float32, torch.float32)
    group = group_of(chosen, blocks)
    grad, flat = torch.randn(5 * blocks, 16), scores.detach().flatten(1)
    torch.library.opcheck(torch.ops.ultramem.pool.default, (table, rows, chosen, scores, blocks))
    torch.library.opcheck(
        torch.ops.ultramem.pool_groups.default, (table, rows.view(-1), group.sort().values, scores.flatten(1), 20)
    )
    plan = make_plan(sort_picks(rows.view(-1)), 7).tensors
    for target, need, given in ((torch.zeros(7, 16), True, []), (None, False, plan)):
        torch.library.opcheck(
            torch.ops.ultramem.pool_backward.default,
            (grad, table.detach(), rows.view(-1), group, flat, target, need, given),
        )
    torch.library.opcheck(
        torch.ops.ultramem.add_rows.default, (torch.zeros(7, 16), rows.view(-1), torch.randn(15, 16), plan)
    )


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 3, 16, 200])
def test_fetched_rows_are_the_rows(width: int, dtype: torch.dtype) -> None:
    """To the bit, as sums of bags of one: the widest and the smallest numbers, infinity, no rows at all."""
    table = torch.randn(40, width).to(dtype)
    table[3], table[4], table[5] = torch.finfo(dtype).max, torch.finfo(dtype).tiny, torch.inf
    rows = torch.randint(40, (90,), dtype=torch.int32)
    assert torch.equal(torch_path.fetch_rows(table, rows), table[rows])
    assert torch_path.fetch_rows(table, rows[:0]).shape == (0, width)


def refused(match: str, **changed: object) -> None:
    table, rows, blocks, scores = draw((2, 3, 5, 8, 2, 2), torch.float32, torch.float32)
    given = {"table_NV": table, "rows_TK": rows, "blocks_TK": blocks, "scores_hTK": scores, "num_blocks": 2}
    with pytest.raises(ArgumentError, match=match):
        pool(**{**given, **changed})  # type: ignore[arg-type]


def test_bad_arguments_are_named() -> None:
    refused(r"table_NV is torch.float16; expected torch.bfloat16 or", table_NV=torch.zeros(5, 8, dtype=torch.float16))
    refused(r"table_NV has strides \[16, 2\].*expected a contiguous table", table_NV=torch.zeros(5, 16)[:, ::2])
    refused(r"rows is torch.float32; expected torch.int32 or torch.int64", rows_TK=torch.zeros(2, 3))
    refused(r"scores has shape \[2, 2, 4\]; expected \[h, 2, 3\]", scores_hTK=torch.zeros(2, 2, 4))
    refused(r"scores has 3 cores for a table of 8 columns", scores_hTK=torch.zeros(3, 2, 3))
    refused(r"blocks_TK is torch.int64; expected torch.uint8", blocks_TK=torch.zeros(2, 3, dtype=torch.int64))
    refused(r"scores is on meta; expected cpu, where table_NV is", scores_hTK=torch.zeros(2, 2, 3, device="meta"))
    refused(r"num_blocks is 0; expected 1 to 256", num_blocks=0)


def test_rows_out_of_range_are_named_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULTRAMEM_CHECK_INDICES", "1")
    refused(r"rows holds numbers from 0 to 5; expected \[0, 5\)", rows_TK=torch.tensor([[0, 5, 1], [1, 1, 1]]))
    refused(
        r"blocks_TK holds numbers from 0 to 2; expected \[0, 2\)",
        blocks_TK=torch.tensor([[0, 2, 1], [1, 1, 1]], dtype=torch.uint8),
    )

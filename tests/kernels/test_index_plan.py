"""The plan: every pick in exactly one chunk of its row, in order."""

import pytest
import torch

from ultramem_kernels.index_plan import CHUNK_PICKS, IndexPlan, make_plan, sort_picks

DRAWS = {
    "distinct": torch.randperm(100),
    "all equal": torch.full((150,), 7),
    "skewed": (torch.rand(700, generator=torch.Generator().manual_seed(0)) ** 4 * 60).long(),
    "a run of exactly two chunks": torch.cat([torch.full((2 * CHUNK_PICKS,), 3), torch.arange(5)]),
    "one more than a chunk": torch.cat([torch.full((CHUNK_PICKS + 1,), 99), torch.full((CHUNK_PICKS,), 0)]),
    "one": torch.tensor([5]),
    "none": torch.empty(0, dtype=torch.int64),
}


def sum_by_plan(plan: IndexPlan, values: torch.Tensor, num_rows: int) -> torch.Tensor:
    """What the kernels do, one program after the other."""
    total, partial = torch.zeros(num_rows), torch.full((plan.num_slots,), torch.nan)
    for chunk, slot in enumerate(plan.slots_C.tolist()):
        begin, end = plan.chunk_starts[chunk : chunk + 2].tolist()
        if begin < len(values):
            assert 0 < end - begin <= CHUNK_PICKS
            assert plan.rows_A[begin:end].unique().numel() == 1
            found = values[plan.order_A[begin:end].long()].sum()
            if slot < 0:
                assert total[plan.rows_A[begin]] == 0, "the row's only chunk"
                total[plan.rows_A[begin]] = found
            else:
                partial[slot] = found
    for run, row in enumerate(plan.run_rows_M.tolist()):
        if row >= 0:
            total[row] = partial[plan.run_slots[run] : plan.run_slots[run + 1]].sum()
    return total


@pytest.mark.parametrize("name", DRAWS)
def test_sums_by_plan_are_sums_by_row(name: str) -> None:
    rows = DRAWS[name].int()
    values = torch.randint(-9, 9, rows.shape).float()
    plan = make_plan(sort_picks(rows), 100)
    assert torch.equal(plan.rows_A, rows.sort().values)
    assert torch.equal(rows[plan.order_A.long()], plan.rows_A)
    assert (plan.order_A.diff()[plan.rows_A.diff() == 0] > 0).all(), "a row's picks keep their order"
    expected = torch.zeros(100).index_add_(0, rows, values)
    assert torch.equal(sum_by_plan(plan, values, 100), expected)


def test_no_more_chunks_than_there_is_room_for() -> None:
    for rows in DRAWS.values():
        plan = make_plan(sort_picks(rows), 100)
        assert plan.chunk_starts[-1] == len(rows) and len(plan.chunk_starts) == len(plan.slots_C) + 1
        assert all(slot < plan.num_slots for slot in plan.slots_C.tolist())


def test_renumbered_rows_are_those_of_the_distinct_ones() -> None:
    """The plan for a table that holds each picked row once, and no other."""
    for name, rows in DRAWS.items():
        distinct, places = rows.unique(return_inverse=True)
        plan = make_plan(sort_picks(rows).renumbered(), 100)
        values = torch.randint(-9, 9, rows.shape).float()
        expected = torch.zeros(len(distinct)).index_add_(0, places, values)
        assert torch.equal(sum_by_plan(plan, values, len(distinct)), expected), name


def test_an_operator_gets_the_tensors_of_a_plan() -> None:
    plan = make_plan(sort_picks(DRAWS["skewed"]), 100)
    again = IndexPlan(*plan.tensors)
    assert all(one is other for one, other in zip(again.tensors, plan.tensors, strict=True))
    assert {tensor.dtype for tensor in plan.tensors} == {torch.int32}

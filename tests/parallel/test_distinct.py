"""Each row once, and where each pick finds its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramem_kernels.index_plan import sort_picks
from ultramem_megatron.parallel.partition.base import even_range
from ultramem_megatron.parallel.partition.distinct import DistinctRows, distinct_rows


def distinct(rows_TK: torch.Tensor, num_rows: int, parts: int) -> DistinctRows:
    return distinct_rows(sort_picks(rows_TK.reshape(-1)), rows_TK.shape, num_rows, parts)


def test_by_hand() -> None:
    """Six rows for two owners: 0 to 2 and 3 to 5."""
    found = distinct(torch.tensor([[4, 1, 4], [0, 4, 1]], dtype=torch.int32), num_rows=6, parts=2)
    assert found.rows_R.tolist() == [0, 1, 4, 0, 0, 0]
    assert found.rows_R.dtype is torch.int32
    assert found.place_TK.tolist() == [[2, 1, 2], [0, 2, 1]]
    assert found.counts_P.tolist() == [2, 1]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=str)
def test_nothing_picked(shape: tuple[int, int]) -> None:
    found = distinct(torch.empty(shape, dtype=torch.int32), num_rows=6, parts=4)
    assert (found.rows_R.tolist(), found.counts_P.tolist()) == ([], [0, 0, 0, 0])
    assert found.place_TK.shape == shape


@settings(deadline=None)
@given(data=st.data(), num_rows=st.integers(1, 60), parts=st.integers(1, 70))
def test_parts_are_the_shards(data: st.DataObject, num_rows: int, parts: int) -> None:
    """More parts than rows included."""
    picked = data.draw(st.lists(st.integers(0, num_rows - 1), max_size=40))
    found = distinct(torch.tensor([picked], dtype=torch.int32), num_rows, parts)
    rows = found.rows_R[: int(found.counts_P.sum())]
    assert rows.tolist() == sorted(set(picked))
    assert rows[found.place_TK[0]].tolist() == picked
    of_parts = rows.split(found.counts_P.tolist())
    for part, held in enumerate(of_parts):
        assert set(held.tolist()) <= set(even_range(num_rows, parts, part))


@settings(deadline=None)
@given(rows=st.integers(1, 300), parts=st.integers(1, 40))
def test_shards_are_consecutive_and_nearly_even(rows: int, parts: int) -> None:
    ranges = [even_range(rows, parts, part) for part in range(parts)]
    assert [row for held in ranges for row in held] == list(range(rows))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_a_table_beyond_int32_products() -> None:
    total, parts = 2**31, 256
    rows = torch.tensor([[0, even_range(total, parts, 100).start, 2**31 - 1]], dtype=torch.int32)
    counts = distinct(rows, total, parts).counts_P
    assert counts.nonzero().flatten().tolist() == [0, 100, 255]

"""Picks in the order of their owners, in groups that are answered together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramem_megatron.parallel.partition.base import even_range
from ultramem_megatron.parallel.partition.by_owner import owner_of, read_marks, sort_by_owner


def test_by_hand() -> None:
    """Two tokens, one key each; rows 0 to 2 belong to the first owner, 3 to 5 to the second."""
    rows_TK, key_TK = torch.tensor([[4, 1, 4], [0, 5, 2]], dtype=torch.int32), torch.tensor([[0] * 3, [1] * 3])
    found = sort_by_owner(rows_TK, key_TK, num_keys=2, num_rows=6, parts=2)
    assert found.order_R.tolist() == [1, 3, 5, 0, 2, 4]
    assert found.marked_rows_R.tolist() == [~1, ~0, 2, ~4, 4, ~5]
    assert found.marked_rows_R.dtype is torch.int32
    assert found.key_R.tolist() == [0, 1, 0, 1, 0, 0]
    assert found.sizes_P2.tolist() == [[3, 2], [3, 2]]


def test_marks_hold_for_the_highest_row() -> None:
    highest = 2**31 - 1
    rows_A, group_A = read_marks(torch.tensor([~highest, highest, ~0, 0], dtype=torch.int32))
    assert rows_A.tolist() == [highest, highest, 0, 0]
    assert rows_A.dtype is torch.int32
    assert group_A.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=str)
def test_nothing_picked(shape: tuple[int, int]) -> None:
    rows_TK = torch.empty(shape, dtype=torch.int32)
    found = sort_by_owner(rows_TK, rows_TK.long(), num_keys=shape[0], num_rows=6, parts=3)
    assert found.sizes_P2.tolist() == [[0, 0]] * 3
    assert found.order_R.tolist() == []


@settings(deadline=None)
@given(data=st.data(), num_rows=st.integers(1, 40), parts=st.integers(1, 9), num_keys=st.integers(1, 6))
def test_every_pick_comes_to_its_owner_in_its_group(
    data: st.DataObject, num_rows: int, parts: int, num_keys: int
) -> None:
    picks = st.tuples(st.integers(0, num_rows - 1), st.integers(0, num_keys - 1))
    picked = data.draw(st.lists(picks, max_size=30))
    rows_R = torch.tensor([row for row, _ in picked], dtype=torch.int32)
    key_R = torch.tensor([key for _, key in picked], dtype=torch.int64)
    found = sort_by_owner(rows_R.view(1, -1), key_R.view(1, -1), num_keys, num_rows, parts)
    assert sorted(found.order_R.tolist()) == list(range(len(picked)))
    first_group = 0
    marked = found.marked_rows_R.split(found.sizes_P2[:, 0].tolist())
    pick_numbers = found.order_R.split(found.sizes_P2[:, 0].tolist())
    for part, groups in enumerate(found.sizes_P2[:, 1].tolist()):
        rows, group = read_marks(marked[part])
        keys = found.key_R[first_group : first_group + groups]
        assert len(keys.unique()) == groups
        assert [(row, int(keys[g])) for row, g in zip(rows.tolist(), group.tolist(), strict=True)] == [
            picked[number] for number in pick_numbers[part].tolist()
        ]
        assert set(rows.tolist()) <= set(even_range(num_rows, parts, part))
        first_group += groups


@settings(deadline=None)
@given(rows=st.integers(1, 300), parts=st.integers(1, 40))
def test_owners_are_the_inverse_of_the_shards(rows: int, parts: int) -> None:
    owners = owner_of(torch.arange(rows, dtype=torch.int32), rows, parts)
    assert owners.tolist() == [part for part in range(parts) for _ in even_range(rows, parts, part)]


def test_owners_of_a_table_beyond_int32_products() -> None:
    rows = torch.tensor([0, even_range(2**31, 256, 100).start, 2**31 - 1], dtype=torch.int32)
    assert owner_of(rows, 2**31, 256).tolist() == [0, 100, 255]

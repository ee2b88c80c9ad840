"""Picks in the order of their owners, and within an owner in groups that are answered together.

Nothing here waits for the device: how many picks and groups an owner has stays a tensor, which the caller reads when
it must.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_kernels.index_plan import number_distinct
from ultramem_megatron.parallel.partition.distinct import count_by_part

# Letters: T tokens, K picks per token, R = T * K picks, P parts of the table, each with one owner; A picks that came.


@dataclass(frozen=True, slots=True)
class PicksByOwner:
    """Picks sorted by owner, then by key. A group are the picks of one key at one owner."""

    order_R: Tensor
    """int64, which pick is at each place."""
    marked_rows_R: Tensor
    """int32, the rows in this order; the first of each group is marked, see ``read_marks``."""
    key_R: Tensor
    """int64, the key of each group; as many as there are groups, then zeros."""
    sizes_P2: Tensor
    """int64, picks and groups of each owner."""


def sort_by_owner(rows_TK: Tensor, key_TK: Tensor, num_keys: int, num_rows: int, parts: int) -> PicksByOwner:
    """Sort picks and mark their groups.

    Args:
        rows_TK: int32, in [0, ``num_rows``); may be empty.
        key_TK: int64, in [0, ``num_keys``).
        num_keys: Keys that there could be.
        num_rows: Rows of the table.
        parts: P; part p begins at row ``p * num_rows // P``, as ``even_range`` has it.
    """
    rows_R, key_R = rows_TK.reshape(-1), key_TK.reshape(-1)
    sorted_R, order_R = torch.sort(owner_of(rows_R, num_rows, parts) * num_keys + key_R, stable=True)
    is_first_R, seen_R = number_distinct(sorted_R)
    starts_P = torch.arange(parts, device=rows_R.device) * num_keys
    rows_R = rows_R[order_R]
    return PicksByOwner(
        order_R,
        torch.where(is_first_R, ~rows_R, rows_R),
        torch.zeros_like(key_R).scatter_(0, seen_R - 1, key_R[order_R]),
        torch.stack([count_by_part(sorted_R, counted_R, starts_P) for counted_R in (_from_one(seen_R), seen_R)], dim=1),
    )


def read_marks(marked_rows_A: Tensor) -> tuple[Tensor, Tensor]:
    """The rows, and the group of each (int64, from 0), of picks whose first of a group has its row's complement.

    A row number is never negative, so the complement, which always is, needs no byte of its own.
    """
    is_first_A = marked_rows_A < 0
    return torch.where(is_first_A, ~marked_rows_A, marked_rows_A), is_first_A.cumsum(0) - 1


def owner_of(rows: Tensor, num_rows: int, parts: int) -> Tensor:
    """int64, the part of each row: the inverse of ``even_range``.

    That is the last part p whose first row ``p * num_rows // parts`` is not beyond the row. In int64, since
    ``(row + 1) * parts`` leaves int32 at 20 M rows and 128 parts.
    """
    return ((rows.long() + 1) * parts - 1) // num_rows


def _from_one(like_R: Tensor) -> Tensor:
    return torch.arange(1, like_R.shape[0] + 1, device=like_R.device)

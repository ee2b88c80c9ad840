"""Picks in the order of their rows, and which of them begin a row: what to sum by row and to name each row once need.

PyTorch on the device of the picks; nothing waits for the device.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Letters: A picks.


@dataclass(frozen=True, slots=True)
class SortedPicks:
    """Picks in ascending order of their rows. Those of one row, a run, keep the order that they had."""

    rows_A: Tensor
    """int32, the rows in ascending order."""
    order_A: Tensor
    """int64, position of each among the picks."""
    is_first_A: Tensor
    """Whether a run begins here."""
    seen_A: Tensor
    """int64, how many rows there are up to this one, and with it."""

    def renumbered(self) -> "SortedPicks":
        """The same picks of the same rows, were these numbered from 0 on without gaps."""
        return replace(self, rows_A=(self.seen_A - 1).int())


def sort_picks(rows_A: Tensor) -> SortedPicks:
    """Sort by row, stably.

    Args:
        rows_A: int32 or int64, below 2**31; fewer than 2**31 of them.
    """
    sorted_A, order_A = torch.sort(rows_A.int(), stable=True)
    return SortedPicks(sorted_A, order_A, *number_distinct(sorted_A))


def number_distinct(sorted_A: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each number is the first of its kind, and how many kinds there are up to it (int64)."""
    is_first_A = torch.ones_like(sorted_A, dtype=torch.bool)
    torch.ne(sorted_A[1:], sorted_A[:-1], out=is_first_A[1:])
    return is_first_A, is_first_A.cumsum(0)

"""Each row once: which rows some picks name, sorted by owner, and where each pick finds its own.

Shards of whole rows are consecutive, so rows in ascending order are also in the order of their owners. Nothing here
waits for the device: how many rows there are stays a tensor, which the caller reads when it must.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_kernels.index_plan import SortedPicks

# Letters: T tokens, K picks per token, R = T * K picks, P parts of the table, each with one owner.


@dataclass(frozen=True, slots=True)
class DistinctRows:
    """The rows that some picks name, each once."""

    rows_R: Tensor
    """In ascending order; as many as ``counts_P`` sums to, then zeros."""
    place_TK: Tensor
    """int64, place of each pick's row in ``rows_R``."""
    counts_P: Tensor
    """int64, how many of the rows lie in each part of the table."""


def distinct_rows(picks: SortedPicks, shape_TK: torch.Size, num_rows: int, parts: int) -> DistinctRows:
    """Sort out repeats. By flags and sums, not by ``torch.unique``, which waits for the device to know its size.

    Args:
        picks: Rows in [0, ``num_rows``); may be empty.
        shape_TK: As the picks were before they were sorted.
        num_rows: Rows of the table.
        parts: P; part p begins at row ``p * num_rows // P``, as ``even_range`` has it.
    """
    sorted_R, seen_R = picks.rows_A, picks.seen_A
    number_R = seen_R - 1
    place_R = torch.empty_like(number_R).scatter_(0, picks.order_A, number_R)
    rows_R = torch.zeros_like(sorted_R).scatter_(0, number_R, sorted_R)
    # int64 until divided: p * num_rows leaves int32 at 20 M rows and 128 parts
    starts_P = torch.arange(parts, device=sorted_R.device) * num_rows // parts
    counts_P = count_by_part(sorted_R, seen_R, starts_P.to(sorted_R.dtype))
    return DistinctRows(rows_R, place_R.view(shape_TK), counts_P)


def count_by_part(sorted_R: Tensor, seen_R: Tensor, starts_P: Tensor) -> Tensor:
    """int64 [P], how much a running count grows within each part.

    Args:
        sorted_R: Numbers in ascending order.
        seen_R: int64, the count up to and with each number.
        starts_P: The number at which each part begins, in the type of ``sorted_R``; the first part at the least.
    """
    seen_before = torch.cat([seen_R.new_zeros(1), seen_R])
    return torch.diff(seen_before[torch.searchsorted(sorted_R, starts_P)], append=seen_before[-1:])

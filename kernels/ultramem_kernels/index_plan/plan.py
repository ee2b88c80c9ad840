"""A plan to sum picks by row in a fixed order, without atomics and in balanced pieces.

Picks are sorted by row, stably: a row's run has them in the order of their positions. A run is cut into chunks; one
program sums a chunk. A run of one chunk is done with it; a longer one leaves a partial sum for each chunk, which a
second pass adds up in order. How the work is cut depends on the picks alone, so the same bits come out each time.

All of it is PyTorch on the device of the picks, and nothing waits for the device: arrays have the size that they could
need, and how much of them is used stays on the device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Letters: A picks, C chunks that there could be, M runs of several chunks that there could be.

CHUNK_PICKS = 32
"""Picks of a chunk. A constant, not tuned at run time: another length adds in another order, and gives other bits."""


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """All tensors are int32, and as long as they could need to be."""

    rows_A: Tensor
    """The rows in ascending order."""
    order_A: Tensor
    """Position of each among the picks."""
    chunk_starts: Tensor
    """[C + 1] first pick of each chunk, in sorted order; A for chunks that do not exist."""
    slots_C: Tensor
    """Where a chunk leaves its partial sum; -1 if it is its row's only one."""
    run_rows_M: Tensor
    """The row of each run of several chunks; -1 for runs that do not exist."""
    run_slots: Tensor
    """[M + 1] first slot of each such run."""
    num_slots: int
    """Slots that there could be."""


def make_plan(rows_A: Tensor, num_rows: int) -> IndexPlan:
    """Sort the picks and cut them into chunks.

    Args:
        rows_A: int32 or int64, in [0, ``num_rows``); fewer than 2**31.
        num_rows: Rows of the table.
    """
    picks, device = rows_A.shape[0], rows_A.device
    # a run of several chunks has more than CHUNK_PICKS picks, and at most twice as many chunks as it fills
    max_chunks, max_runs = picks // CHUNK_PICKS + min(picks, num_rows), picks // CHUNK_PICKS
    sorted_A, order_A = torch.sort(rows_A.int(), stable=True)
    place_A = torch.arange(picks, device=device)
    first_A = torch.ones(picks, dtype=torch.bool, device=device)
    torch.ne(sorted_A[1:], sorted_A[:-1], out=first_A[1:])
    run_start_A = torch.where(first_A, place_A, 0).cummax(0).values if picks else place_A
    begins_A = (place_A - run_start_A) % CHUNK_PICKS == 0
    chunk_A = begins_A.cumsum(0) - 1
    chunk_starts = _first_of(place_A, chunk_A, begins_A, max_chunks + 1, picks)
    # a chunk is one of several if a run goes on after it or began before it
    after_A = torch.zeros_like(first_A)
    after_A[:-CHUNK_PICKS] = sorted_A[:-CHUNK_PICKS] == sorted_A[CHUNK_PICKS:]
    several_A = begins_A & (after_A | (place_A != run_start_A))
    slot_A = several_A.cumsum(0) - 1
    slots_C = _first_of(torch.where(several_A, slot_A, -1), chunk_A, begins_A, max_chunks, -1)
    run_begins_A = several_A & first_A
    run_A = run_begins_A.cumsum(0) - 1
    run_slots = _first_of(slot_A, run_A, run_begins_A, max_runs + 1, -1)
    used_slots = several_A.sum()
    return IndexPlan(
        rows_A=sorted_A,
        order_A=order_A.int(),
        chunk_starts=chunk_starts,
        slots_C=slots_C,
        run_rows_M=_first_of(sorted_A, run_A, run_begins_A, max_runs, -1),
        run_slots=torch.where(run_slots < 0, used_slots, run_slots).int(),
        num_slots=2 * max_runs,
    )


def _first_of(values_A: Tensor, number_A: Tensor, is_first_A: Tensor, size: int, rest: int) -> Tensor:
    """int32 [size], the value at the first pick of each numbered piece; ``rest`` where there is no such piece."""
    # what is not the first of a piece goes to a place of its own, which is cut off
    target_A = torch.where(is_first_A, number_A, size)
    found = torch.full((size + 1,), rest, dtype=torch.int32, device=values_A.device)
    return found.scatter_(0, target_A, values_A.int())[:size]

"""A plan to sum picks by row in a fixed order, without atomics and in balanced pieces.

Picks are sorted by row, stably: a row's run has them in the order of their positions. A run is cut into chunks; one
program sums a chunk. A run of one chunk is done with it; a longer one leaves a partial sum for each chunk, which a
second pass adds up in order. How the work is cut depends on the picks alone, so the same bits come out each time.

All of it is PyTorch on the device of the picks, and nothing waits for the device: arrays have the size that they could
need, and how much of them is used stays on the device.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ultramem_kernels.index_plan.runs import SortedPicks

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

    @property
    def num_slots(self) -> int:
        """Slots that there could be: a run of several chunks has more picks than one holds, and at most twice as many
        chunks as it fills."""
        return 2 * self.run_rows_M.shape[0]

    @property
    def tensors(self) -> list[Tensor]:
        """As an operator takes them; ``IndexPlan(*tensors)`` is the plan again."""
        return [getattr(self, field.name) for field in fields(self)]


def make_plan(picks: SortedPicks, num_rows: int) -> IndexPlan:
    """Cut the runs into chunks.

    Args:
        picks: Rows in [0, ``num_rows``).
        num_rows: Rows of the table.
    """
    rows_A, first_A, count, device = picks.rows_A, picks.is_first_A, picks.rows_A.shape[0], picks.rows_A.device
    max_chunks, max_runs = count // CHUNK_PICKS + min(count, num_rows), count // CHUNK_PICKS
    place_A = torch.arange(count, device=device)
    run_start_A = torch.where(first_A, place_A, 0).cummax(0).values if count else place_A
    begins_A = (place_A - run_start_A) % CHUNK_PICKS == 0
    # a chunk is one of several if a run goes on after it or began before it
    after_A = torch.zeros_like(first_A)
    after_A[:-CHUNK_PICKS] = rows_A[:-CHUNK_PICKS] == rows_A[CHUNK_PICKS:]
    several_A = begins_A & (after_A | (place_A != run_start_A))
    slots_before = F.pad(several_A.cumsum(0), (1, 0))  # [A + 1]: what does not exist begins behind the last pick
    chunk_starts = _begins(begins_A, max_chunks + 1)
    run_starts = _begins(several_A & first_A, max_runs + 1)
    at_C = chunk_starts[:-1]
    return IndexPlan(
        rows_A=rows_A,
        order_A=picks.order_A.int(),
        chunk_starts=chunk_starts.int(),
        slots_C=torch.where(F.pad(several_A, (0, 1))[at_C], slots_before[at_C], -1).int(),
        run_rows_M=F.pad(rows_A, (0, 1), value=-1)[run_starts[:-1]],
        run_slots=slots_before[run_starts].int(),
    )


def _begins(begins_A: Tensor, size: int) -> Tensor:
    """int64 [size], where each piece begins; A for pieces that do not exist."""
    return torch.searchsorted(begins_A.cumsum(0), torch.arange(1, size + 1, device=begins_A.device))

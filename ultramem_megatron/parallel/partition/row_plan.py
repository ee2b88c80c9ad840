"""The plan of a lookup's rows, by which their gradients are summed: made once, as soon as the rows are known.

On a GPU it is made beside the main stream, long before the backward pass needs it. On a CPU none is made: there rows
are added up one after the other, which needs no order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_kernels.index_plan import IndexPlan, SortedPicks, make_plan, sort_picks
from ultramem_megatron.parallel.beside import Beside


@dataclass(frozen=True, slots=True)
class PlanAhead:
    """A plan on its way."""

    plan: IndexPlan
    work: Beside

    def take(self) -> IndexPlan:
        """The plan, for the current stream, which waits for it. The host does not."""
        self.work.join(*self.plan.tensors)
        return self.plan


def gradients_need_plan(rows: Tensor) -> bool:
    """Whether those of what is read at ``rows`` will be summed by a plan: on a GPU, if there will be any."""
    return torch.is_grad_enabled() and sums_need_plan(rows)


def sums_need_plan(rows: Tensor) -> bool:
    """Whether sums by row take a plan on the device of ``rows``."""
    return rows.is_cuda


def plan_gradients(rows: Tensor, num_rows: int) -> PlanAhead | None:
    """Make the plan of ``rows``, of any shape and in [0, ``num_rows``), if their gradients need one."""
    return plan_sums(rows, num_rows) if gradients_need_plan(rows) else None


def plan_sums(rows: Tensor, num_rows: int) -> PlanAhead | None:
    """Make the plan of ``rows`` if sums need one on their device."""
    if not sums_need_plan(rows):
        return None
    with Beside(rows) as work:
        plan = make_plan(sort_picks(rows.reshape(-1)), num_rows)
    return PlanAhead(plan, work)


def plan_by_place(picks: SortedPicks, num_rows: int, work: Beside) -> PlanAhead:
    """The plan for the distinct rows of some picks, in ascending order; to be called inside of ``work``.

    Args:
        picks: Of a table.
        num_rows: Its rows.
        work: By which the plan is made.
    """
    return PlanAhead(make_plan(picks.renumbered(), num_rows), work)


def taken(plan: PlanAhead | None) -> IndexPlan | None:
    """What the kernels are given."""
    return None if plan is None else plan.take()

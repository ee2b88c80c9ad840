"""The order of candidates: by seconds of a step or by bytes, and what is a tie."""

import math

from ultramem_megatron.config.memory import GroupPlacement, PartitionName
from ultramem_megatron.planning.plan import Candidate, CostModel, Plan, Rejection

# A tie in bytes goes to the earlier one: number-wise sends no scores, and needs no divisor of the row width.
TIE_ORDER = (
    PartitionName.NUMBER_WISE,
    PartitionName.NUMBER_WISE_POOLED,
    PartitionName.DIMENSION_WISE,
    PartitionName.GRID,
    PartitionName.REPLICATED,
)
TIE_FRACTION = 0.01
"""Steps that differ by less are a tie: no model of this kind sees more."""


def rank_candidates(
    candidates: list[Candidate], cost_model: CostModel, current: Plan | None = None
) -> tuple[list[Candidate], list[Candidate]]:
    """Best first, what is out last; and those that tie with the first.

    Among steps that are equally long the current layout wins, then the one that keeps the links least busy.
    """
    if cost_model is CostModel.BYTES:
        ranked = sorted(candidates, key=by_bytes)
        best = ranked[0]
        level = [c for c in ranked if c.feasible and c.bytes_per_step == best.bytes_per_step]
        # where the ranks are makes no difference to bytes
        level = [c for c in level if c.placement is best.placement]
    else:
        ranked = sorted(candidates, key=by_time)
        limit = ranked[0].step_seconds * (1 + TIE_FRACTION)
        level = [c for c in ranked if c.feasible and c.step_seconds <= limit]
        level.sort(key=lambda c: c.busy_seconds)
    level.sort(key=lambda c: not _is_current(c, current))
    first = level[:1]
    rest = [c for c in ranked if c not in first]
    return first + rest, level[1:]


def _is_current(candidate: Candidate, current: Plan | None) -> bool:
    if current is None or current.chosen is None:
        return False
    there = current.chosen
    return (candidate.partition, candidate.parallel_size, candidate.placement, candidate.node_size) == (
        there.partition,
        there.parallel_size,
        there.placement,
        there.node_size,
    )


def by_bytes(candidate: Candidate) -> tuple[bool, float, int, int, bool]:
    """Sort key: feasible first, then fewest bytes, then the tie order, then the smaller group."""
    return (not candidate.feasible, *_known_last(candidate, candidate.bytes_per_step))


def by_time(candidate: Candidate) -> tuple[bool, float, int, int, bool]:
    """Sort key: feasible first, then the shortest step, then as ``by_bytes``."""
    return (not candidate.feasible, *_known_last(candidate, candidate.step_seconds))


def _known_last(candidate: Candidate, cost: float) -> tuple[float, int, int, bool]:
    known = math.inf if candidate.rejected_by is Rejection.SHAPE else cost
    is_spread = candidate.placement is GroupPlacement.SPREAD
    return known, TIE_ORDER.index(candidate.partition), candidate.parallel_size, is_spread

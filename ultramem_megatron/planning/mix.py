"""What each table would take by itself, and what it costs that all tables share one strategy.

Tables of one model have the same shape; they differ in the dense blocks beside which their lookups may run.
"""

from collections.abc import Sequence

from ultramem_megatron.planning.plan import Candidate, TableAlone
from ultramem_megatron.planning.problem import Problem
from ultramem_megatron.planning.step_time import Window, exposed_seconds


def tables_alone(problem: Problem, candidates: Sequence[Candidate], common: Candidate) -> tuple[TableAlone, ...]:
    """Of each table the candidate for which its stage waits least, the common one where none is better.

    Args:
        problem: The run on its cluster.
        candidates: All. Those that do not fit when all tables take them are left out: a mix could afford some.
        common: What all tables take.
    """
    feasible = [candidate for candidate in candidates if candidate.feasible]
    found = []
    for index, (span, window) in enumerate(zip(problem.config.memory.span_list, problem.dense.windows, strict=True)):
        waits = [_waiting_seconds(problem, candidate, window) for candidate in feasible]
        shared = _waiting_seconds(problem, common, window)
        least = min(waits)
        best = common if least >= shared else feasible[waits.index(least)]
        found.append(
            TableAlone(
                table=index,
                span=str(span),
                stage=window.stage,
                choice=best.label,
                waiting_seconds=min(least, shared),
                common_waiting_seconds=shared,
            )
        )
    return tuple(found)


def most_saved_seconds(tables: Sequence[TableAlone]) -> float:
    """Of a step, at most, if each table had its own choice: the gains of the stage that gains most."""
    gains: dict[int, float] = {}
    for one in tables:
        gains[one.stage] = gains.get(one.stage, 0.0) + one.common_waiting_seconds - one.waiting_seconds
    return max(gains.values(), default=0.0)


def _waiting_seconds(problem: Problem, candidate: Candidate, window: Window) -> float:
    """For which the stage waits in one optimizer step, for this table alone."""
    return problem.dense.turns * exposed_seconds(candidate, window, problem.overlap_fraction) + candidate.sync_seconds

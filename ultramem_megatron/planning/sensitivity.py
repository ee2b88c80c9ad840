"""What would flip the choice: tokens of a micro-batch, network cards, skew of the picks; and the best at each P."""

from collections.abc import Callable
from dataclasses import replace

from ultramem_megatron.planning.enumerate import candidates_of
from ultramem_megatron.planning.plan import Candidate, CostModel, Flip, Plan
from ultramem_megatron.planning.problem import Problem
from ultramem_megatron.planning.ranking import rank_candidates

_HALVINGS = 5
"""Tokens are varied from a 32nd of the run's to 32 times as many ..."""
_BISECTIONS = 3
"""... and a flip is then looked for between two powers of two, to a ninth."""
_CARDS = (0.5, 0.25, 2.0, 4.0)
_EXPONENTS = (0.5, 1.0)


def flips_of(problem: Problem, plan: Plan) -> tuple[Flip, ...]:
    """The nearest changes that make another candidate better by more than a tie.

    Args:
        problem: What ``plan`` was made for.
        plan: The choice, ranked by time; by bytes nothing but the tokens' share of a step could flip it.
    """
    if plan.chosen is None or plan.cost_model is CostModel.BYTES:
        return ()
    found = [_tokens(problem, plan, down=True), _tokens(problem, plan, down=False), *_network(problem, plan)]
    return tuple(flip for flip in (*found, _skew(problem, plan)) if flip is not None)


def _best(problem: Problem, plan: Plan) -> Candidate | None:
    """Of the changed problem, if it is another than the plan's; ties stay with the plan."""
    best = rank_candidates(candidates_of(problem), CostModel.TIME, plan)[0][0]
    assert plan.chosen is not None
    return best if best.feasible and best.label != plan.chosen.label else None


def _tokens(problem: Problem, plan: Plan, *, down: bool) -> Flip | None:
    tokens = problem.workload.lookup.tokens
    change: Callable[[float], Candidate | None] = lambda factor: _best(problem.with_tokens(factor), plan)  # noqa: E731
    kept = 1.0
    for power in range(1, _HALVINGS + 1):
        flipped = 2.0**-power if down else 2.0**power
        if tokens * flipped < 1:
            return None
        best = change(flipped)
        if best is None:
            kept = flipped
            continue
        for _ in range(_BISECTIONS):
            middle = (kept * flipped) ** 0.5
            other = change(middle)
            kept, flipped, best = (kept, middle, other) if other else (middle, flipped, best)
        return Flip(what="tokens of a rank in a micro-batch", now=tokens, at=round(tokens * flipped), choice=best.label)
    return None


def _network(problem: Problem, plan: Plan) -> list[Flip | None]:
    """The nearest number of cards below, and the nearest above."""
    if problem.cluster.nodes == 1:
        return []
    cards = problem.cluster.profile.nics_per_node
    found: list[Flip | None] = []
    for side in (_CARDS[:2], _CARDS[2:]):
        for factor in side:
            best = _best(problem.with_network(factor), plan)
            if best is not None:
                found.append(Flip(what="network cards of a node", now=cards, at=cards * factor, choice=best.label))
                break
    return found


def _skew(problem: Problem, plan: Plan) -> Flip | None:
    shape = problem.workload.lookup
    for exponent in _EXPONENTS:
        if exponent <= shape.zipf_exponent:
            continue
        skewed = replace(problem.workload, lookup=replace(shape, zipf_exponent=exponent))
        best = _best(replace(problem, workload=skewed), plan)
        if best is not None:
            return Flip(what="Zipf exponent of the picks", now=shape.zipf_exponent, at=exponent, choice=best.label)
    return None


def best_by_size(candidates: tuple[Candidate, ...]) -> list[Candidate]:
    """For each P the fastest candidate that fits."""
    fit = [c for c in candidates if c.feasible]
    sizes = sorted({c.parallel_size for c in fit})
    return [min((c for c in fit if c.parallel_size == size), key=lambda c: c.step_seconds) for size in sizes]

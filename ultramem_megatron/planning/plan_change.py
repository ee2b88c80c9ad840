"""Two plans of one run: what changed from the one to the other, and why."""

from ultramem_megatron.planning.plan import Candidate, Plan
from ultramem_megatron.units import format_bytes, format_seconds


def describe_change(before: Plan, after: Plan) -> str:
    """One paragraph for the log of a run that goes on under ``after``."""
    return f"{_what(before, after)} {_why(before, after)} The checkpoint follows: any layout loads what another saved."


def _what(before: Plan, after: Plan) -> str:
    if _layout(before.chosen) == _layout(after.chosen):
        return f"The plan is new, the layout is not: the memory tables stay {_label(after.chosen)}."
    text = f"The memory tables were {_label(before.chosen)} and are now {_label(after.chosen)}"
    if before.chosen is None or after.chosen is None:
        return f"{text}."
    return (
        f"{text}: {format_bytes(before.chosen.bytes_per_step)} a step and rank become "
        f"{format_bytes(after.chosen.bytes_per_step)}, a step of {format_seconds(before.chosen.step_seconds)} "
        f"becomes one of {format_seconds(after.chosen.step_seconds)} (predicted)."
    )


def _why(before: Plan, after: Plan) -> str:
    reasons = []
    if before.world_size != after.world_size:
        reasons.append(f"the run has {after.world_size} ranks and had {before.world_size}")
    if before.profile != after.profile:
        reasons.append(f"the cluster's profile is {after.profile} and was {before.profile}")
    keys = {**before.config_summary, **after.config_summary}
    reasons += [
        f"{key} is {after.config_summary.get(key)} and was {before.config_summary.get(key)}"
        for key in keys
        if before.config_summary.get(key) != after.config_summary.get(key)
    ]
    old = _same(before.chosen, after)
    if old is not None and not old.feasible:
        reasons.append(f"{old.label} would not do: {old.reason}")
    elif old is None and before.chosen is not None and before.chosen.parallel_size > after.world_size:
        reasons.append(f"{before.chosen.label} needs more ranks than there are")
    elif old is not None and _layout(old) != _layout(after.chosen):
        reasons.append(f"{old.label} is predicted to take {format_seconds(old.step_seconds)} a step here")
    return f"Why: {'; '.join(reasons)}." if reasons else "Why: a setting pins it, or the cost model has changed."


def _same(chosen: Candidate | None, plan: Plan) -> Candidate | None:
    """The candidate of ``plan`` with that layout."""
    return next((one for one in plan.candidates if _layout(one) == _layout(chosen)), None)


def _layout(candidate: Candidate | None) -> tuple[object, ...]:
    if candidate is None:
        return ()
    return candidate.partition, candidate.parallel_size, candidate.placement, candidate.node_size


def _label(candidate: Candidate | None) -> str:
    return candidate.label if candidate else "absent"

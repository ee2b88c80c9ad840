"""Why a plan is as it is, in the words of an engineer who has the numbers before them."""

from ultramem_megatron.config.memory import GroupPlacement
from ultramem_megatron.planning.page import short_seconds
from ultramem_megatron.planning.plan import Candidate, Plan, Rejection
from ultramem_megatron.planning.ranking import verdicts
from ultramem_megatron.units import format_bytes


def reasons(plan: Plan) -> list[str]:
    """Some sentences each: capacity, what is hidden, the rivals, bytes against time, where the ranks lie, trust."""
    chosen = plan.chosen
    if chosen is None:
        return []
    found = [_capacity(plan), _hiding(plan, chosen), *_other_strategies(plan, chosen)]
    found += [_bytes_against_time(plan), *_placement(plan, chosen), _certainty(plan, chosen)]
    return [text for text in found if text]


def _capacity(plan: Plan) -> str:
    out = [c for c in plan.candidates if c.rejected_by is Rejection.CAPACITY]
    if not out:
        return "Capacity decides nothing here: every candidate that the shapes allow fits."
    smallest = min((c for c in plan.candidates if c.feasible), key=lambda c: c.parallel_size)
    largest = max(out, key=lambda c: c.memory_bytes)
    return (
        f"Capacity rules out {len(out)} candidates; the largest, {largest.label}, would need "
        f"{format_bytes(largest.memory_bytes)} of {format_bytes(plan.usable_memory_bytes)}. The fewest ranks that can "
        f"share a table are {smallest.parallel_size}."
    )


def _hiding(plan: Plan, chosen: Candidate) -> str:
    times = plan.predicted_seconds
    phase, seconds = max(chosen.phase_seconds.items(), key=lambda item: item[1], default=("", 0.0))
    which, _, name = phase.partition(".")
    hidden = (
        "all of it is hidden"
        if chosen.exposed_seconds <= times.table_sync_per_step * 1.001
        else "not all of it is hidden"
    )
    own, other = short_seconds(chosen.forward_seconds), short_seconds(chosen.backward_seconds)
    return (
        f"A lookup takes {own} forward and {other} backward; the dense blocks of the shortest span take "
        f"{short_seconds(times.window_forward)} and {short_seconds(times.window_backward)} beside it, so {hidden}. The "
        f'largest part is its phase "{name}", {which}: {short_seconds(seconds)}. Once a step '
        f"{short_seconds(times.table_sync_per_step)} go into keeping the copies of the tables equal; nothing "
        "hides these."
    )


def _other_strategies(plan: Plan, chosen: Candidate) -> list[str]:
    """The best of each other strategy, and where it loses."""
    texts, seen = [], {chosen.partition}
    for candidate in plan.candidates:
        if not candidate.feasible or candidate.partition in seen:
            continue
        seen.add(candidate.partition)
        later = candidate.step_seconds - chosen.step_seconds
        if later <= 0:
            continue
        texts.append(f"{candidate.label} is {short_seconds(later)} a step slower: {_burden(plan, candidate, chosen)}.")
    return texts


def _burden(plan: Plan, candidate: Candidate, chosen: Candidate) -> str:
    """What makes most of the difference: the copies, which nothing hides, or the lookups."""
    later = candidate.step_seconds - chosen.step_seconds
    tables = plan.predicted_seconds.forward_per_micro_batch / chosen.forward_seconds
    if tables * (candidate.sync_seconds - chosen.sync_seconds) > later / 2:
        return (
            f"its copies take {short_seconds(candidate.sync_seconds)} a table and step to make equal against "
            f"{short_seconds(chosen.sync_seconds)}"
        )
    phase, seconds = max(candidate.phase_seconds.items(), key=lambda item: item[1])
    which, _, name = phase.partition(".")
    lookup, own = (c.forward_seconds + c.backward_seconds for c in (candidate, chosen))
    return (
        f"a lookup takes {short_seconds(lookup)} in all against {short_seconds(own)}, "
        f'largest part the phase "{name}", {which} ({short_seconds(seconds)})'
    )


def _bytes_against_time(plan: Plan) -> str:
    by_bytes, by_time = verdicts(plan.candidates)
    if by_bytes.label == by_time.label:
        return ""
    cheap, fast = (_bytes_per_second(c) for c in (by_bytes, by_time))
    text = (
        f"Why the verdicts differ: {by_bytes.label} sends {format_bytes(by_bytes.bytes_per_step)} a step at "
        f"{cheap / 1e9:.1f} GB/s on average, {by_time.label} {format_bytes(by_time.bytes_per_step)} at "
        f"{fast / 1e9:.1f} GB/s"
    )
    if by_bytes.exposed_seconds > by_time.exposed_seconds and by_bytes.busy_seconds < by_time.busy_seconds:
        return f"{text}; what counts is not how much is sent, but how much of it the dense blocks hide."
    return (
        f"{text}: links inside a node, all-gathers and all-to-alls between nodes, and rows in memory differ in speed."
    )


def _bytes_per_second(candidate: Candidate) -> float:
    return candidate.bytes_per_step / candidate.busy_seconds if candidate.busy_seconds else 0.0


def _placement(plan: Plan, chosen: Candidate) -> list[str]:
    """What the other place for the same ranks would cost."""
    for candidate in plan.candidates:
        same = (candidate.partition, candidate.parallel_size) == (chosen.partition, chosen.parallel_size)
        if not same or candidate.placement is chosen.placement:
            continue
        later = candidate.step_seconds - chosen.step_seconds
        if chosen.placement is GroupPlacement.SPREAD:
            why = "a table's ranks lie far apart so that the copies of a shard are neighbours, and synchronised"
            times = (
                f"in {short_seconds(chosen.sync_seconds)} a table instead of {short_seconds(candidate.sync_seconds)}"
            )
        else:
            why = "a table's ranks are neighbours, so that lookups stay close: a lookup takes"
            own, other = (c.forward_seconds + c.backward_seconds for c in (chosen, candidate))
            times = f"{short_seconds(own)} instead of {short_seconds(other)}"
        return [
            f"Place: {why} {times}. The other way round a step would be {short_seconds(abs(later))} "
            f"{'longer' if later >= 0 else 'shorter'}."
        ]
    return []


def _certainty(plan: Plan, chosen: Candidate) -> str:
    share = chosen.uncertainty_seconds / chosen.busy_seconds if chosen.busy_seconds else 0.0
    return (
        f"Trust: the tables' {short_seconds(chosen.busy_seconds)} a step are good to +-{share:.0%}, by the fit errors "
        f"or the trust marks of profile {plan.profile}; only a measurement narrows that (`ultramem calibrate`)."
    )

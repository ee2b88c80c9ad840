"""A plan in words and tables for the person who has to trust it. Plain text, at most 120 columns."""

from ultramem_megatron.config.memory import GroupPlacement
from ultramem_megatron.planning.mix import most_saved_seconds
from ultramem_megatron.planning.page import WIDTH, aligned, paragraph, short_seconds
from ultramem_megatron.planning.plan import Candidate, CostModel, Flip, Plan, Rejection
from ultramem_megatron.planning.ranking import TIE_FRACTION, verdicts
from ultramem_megatron.planning.reasons import reasons
from ultramem_megatron.planning.sensitivity import best_by_size
from ultramem_megatron.units import GIB, format_bytes

__all__ = ["NOT_MODELLED", "WIDTH", "explain", "summary"]

RUNNERS_UP = 5

NOT_MODELLED = (
    "Traffic and work that is the same for every candidate: tensor and pipeline parallel, gradients of the dense "
    "model, the optimizer, reading data, checkpoints. A real step is longer by these.",
    "Contention: collectives are timed as if no other kind ran at the same moment; the network is taken as free of "
    "oversubscription and stragglers, and every node as equally fast.",
    "Order of work: a lookup is taken to hide beside all of the dense work of its span, as if it could be cut "
    "anywhere; waits of the host for the device are not counted.",
    "Skew is that of one Zipf exponent (--skew), the same for all tables; measure yours as memory/owner_skew.",
    "A mix of strategies: one serves all tables; what that costs is said above, table by table.",
    "Memory: activations and lookup buffers are estimates (unfused attention); the padding of "
    "Megatron's buffers and the workspace of kernels are not counted.",
)


def summary(plan: Plan) -> str:
    """The choice, rivals, both verdicts, memory, what would flip it: what ``ultramem plan`` prints."""
    sections = [_heading(plan), *_choice(plan)]
    if plan.candidates:
        sections += [_rival_table(plan), _verdicts(plan), _flips(plan)]
    return "\n\n".join([*sections, _memory_table(plan), _limits(plan)])


def explain(plan: Plan) -> str:
    """Everything: the summary, why, all candidates, rejections, the paper's verdict, what is left out."""
    sections = [summary(plan)]
    if plan.candidates:
        sections += ["\n".join(["Why.", *(paragraph(f"- {text}", indent="  ") for text in reasons(plan))])]
        sections += [
            _alone_table(plan),
            _size_table(plan),
            _candidate_table(plan),
            *_rejections(plan),
            _paper_verdict(plan),
        ]
    return "\n\n".join([*sections, _not_modelled()])


def _heading(plan: Plan) -> str:
    settings = plan.config_summary
    tensor, pipeline = int(settings["parallelism.tensor"]), int(settings["parallelism.pipeline"])
    data = plan.world_size // (tensor * pipeline)
    return paragraph(
        f"Plan {plan.hash[:12]} for {plan.cluster}: {plan.world_size} ranks = tensor {tensor} x data {data} x "
        f"pipeline {pipeline}, {format_bytes(plan.usable_memory_bytes)} usable memory a rank."
    )


def _choice(plan: Plan) -> list[str]:
    chosen = plan.chosen
    if chosen is None:
        return ["The model has no memory layers, so there is no table to split."]
    tables, placement = len(plan.placements), plan.placements[0]
    copies = plan.world_size // int(plan.config_summary["parallelism.pipeline"]) // chosen.parallel_size
    lines = [
        f"Choice: {chosen.label}, {copies} {'copy' if copies == 1 else 'copies'} of each table{_where(chosen)}. "
        f"{tables} {'table' if tables == 1 else 'tables'} of {placement.num_rows:,} rows x {placement.value_dim}"
        f"{_pre_values(plan)}, at spans {', '.join(p.span for p in plan.placements)}.",
        f"A rank sends {format_bytes(plan.predicted.per_step)} a step: "
        f"{format_bytes(plan.predicted.forward_per_micro_batch)} forward and "
        f"{format_bytes(plan.predicted.backward_per_micro_batch)} backward in each micro-batch, "
        f"{format_bytes(plan.predicted.table_sync_per_step)} once a step to keep copies of a shard equal.",
        _times(plan),
        *_pending(plan),
        _rivals(plan, chosen),
    ]
    return ["\n".join(paragraph(line) for line in lines)]


def _where(chosen: Candidate) -> str:
    if chosen.parallel_size == 1:
        return ""
    if chosen.nodes == 1:
        return ", each inside a node"
    ranks = chosen.parallel_size // chosen.nodes
    return f", each across {chosen.nodes} nodes with {ranks} {'rank' if ranks == 1 else 'ranks'} on every one"


def _times(plan: Plan) -> str:
    times = plan.predicted_seconds
    hidden = "" if times.per_step == 0 else f", {times.exposed_per_step / times.per_step:.1%} of the step"
    return (
        f"Predicted: a step of {short_seconds(times.per_step)}, of which the dense blocks take "
        f"{short_seconds(times.dense_per_step)} and "
        f"waiting for tables {short_seconds(times.exposed_per_step)}{hidden}. The "
        f"tables' own work is {short_seconds(times.forward_per_micro_batch)} forward and "
        f"{short_seconds(times.backward_per_micro_batch)} backward in each micro-batch, and "
        f"{short_seconds(times.table_sync_per_step)} once a step for the copies."
    )


def _pending(plan: Plan) -> list[str]:
    count = plan.predicted.pending_per_micro_batch
    text = (
        f"Spans that cross a boundary between pipeline stages cost a rank up to {format_bytes(count)} in each "
        "micro-batch, results forward and gradients backward, in every candidate."
    )
    return [text] if count else []


def _pre_values(plan: Plan) -> str:
    width = int(plan.config_summary.get("memory.pre_value_dim", 0))
    return f" and as many pre-values x {width}" if width else ""


def _rivals(plan: Plan, chosen: Candidate) -> str:
    feasible = [c for c in plan.candidates if c.feasible]
    others = [f"{c.label} ({_ratio(plan, c, chosen)})" for c in feasible[1:4]]
    what = "Fewest bytes" if plan.cost_model is CostModel.BYTES else "Shortest step"
    if plan.tied_with and plan.cost_model is CostModel.TIME:
        what = "Among the shortest steps"
    text = f"{what} of the {len(feasible)} candidates that fit"
    text += f"; next: {', '.join(others)}." if others else "; there is no other."
    if plan.tied_with:
        text += f" It is a tie with {_listed(plan.tied_with)}: {_tie_rule(plan)}"
    pinned_out = [c for c in plan.candidates if c.rejected_by is Rejection.PIN]
    better = [c for c in pinned_out if _cost(plan, c) < _cost(plan, chosen)]
    if better:
        best = min(better, key=lambda c: _cost(plan, c))
        does = "sends less" if plan.cost_model is CostModel.BYTES else "is faster"
        text += f" The settings exclude {best.label}, which {does} ({_ratio(plan, best, chosen)}; {best.reason})."
    return text


def _listed(labels: tuple[str, ...]) -> str:
    shown = ", ".join(labels[:3])
    return shown if len(labels) <= 3 else f"{shown} and {len(labels) - 3} more"


def _tie_rule(plan: Plan) -> str:
    if plan.cost_model is CostModel.BYTES:
        return "the bytes give no reason to prefer either."
    return (
        f"steps within {TIE_FRACTION:.0%} are as good as equal. The layout that a run has wins, else the one whose "
        "tables keep links and memory least busy."
    )


def _cost(plan: Plan, candidate: Candidate) -> float:
    return candidate.bytes_per_step if plan.cost_model is CostModel.BYTES else candidate.step_seconds


def _ratio(plan: Plan, candidate: Candidate, chosen: Candidate) -> str:
    if plan.cost_model is CostModel.TIME:
        return f"{short_seconds(candidate.step_seconds)} a step"
    if chosen.bytes_per_step == 0:
        return format_bytes(candidate.bytes_per_step)
    return f"{candidate.bytes_per_step / chosen.bytes_per_step:.2f} times as many"


def _rival_table(plan: Plan) -> str:
    """The chosen one, the next ones, and the best of each other strategy."""
    feasible = [c for c in plan.candidates if c.feasible]
    shown = feasible[: 1 + RUNNERS_UP]
    for candidate in feasible:
        if candidate.partition not in {c.partition for c in shown}:
            shown.append(candidate)
    rows = [["strategy", "ranks", "nodes", "sends/step", "forward", "backward", "sync", "waiting", "step", "HBM", ""]]
    for candidate in shown:
        c = candidate
        times = (c.forward_seconds, c.backward_seconds, c.sync_seconds, c.exposed_seconds, c.step_seconds)
        cells = [format_bytes(c.bytes_per_step), *map(short_seconds, times), f"{c.memory_bytes / GIB:.1f} GiB"]
        note = "chosen" if c is feasible[0] else "tie" if c.label in plan.tied_with else ""
        rows.append([_strategy(c), str(c.parallel_size), str(c.nodes), *cells, note])
    caption = (
        "Choice and runners-up. Forward and backward are of one table in one micro-batch before anything hides them, "
        "sync of one table a step; waiting and step are of an optimizer step."
    )
    return f"{paragraph(caption)}\n{aligned(rows)}"


def _strategy(candidate: Candidate) -> str:
    return str(candidate.partition) + (", spread" if candidate.placement is GroupPlacement.SPREAD else "")


def _verdicts(plan: Plan) -> str:
    by_bytes, by_time = verdicts(plan.candidates)
    text = f"Verdict by bytes: {by_bytes.label} ({format_bytes(by_bytes.bytes_per_step)} a step"
    text += f", step {short_seconds(by_bytes.step_seconds)}). Verdict by time: {by_time.label} "
    text += f"({format_bytes(by_time.bytes_per_step)} a step, step {short_seconds(by_time.step_seconds)}). "
    if by_bytes.label == by_time.label:
        return paragraph(f"{text}They agree.")
    lost = by_bytes.step_seconds / by_time.step_seconds - 1
    return paragraph(f"{text}They differ; to follow the bytes would cost {lost:.1%} of the step.")


def _flips(plan: Plan) -> str:
    if not plan.flips:
        return "What would flip the choice: nothing near (tokens a micro-batch, network cards, skew of the picks)."
    lines = [paragraph(f"- {_flip(flip)}", indent="  ") for flip in plan.flips]
    return "\n".join(["What would flip the choice.", *lines])


def _flip(flip: Flip) -> str:
    word = "down to" if flip.at < flip.now else "up to"
    return f"{flip.what}, now {flip.now:g}, {word} {flip.at:g}: {flip.choice}"


def _alone_table(plan: Plan) -> str:
    rows = [["table", "span", "waits", "by itself", "costs", "best by itself"]]
    for one in plan.tables_alone:
        own, common = one.waiting_seconds, one.common_waiting_seconds
        rows.append([str(one.table), one.span, *map(short_seconds, (common, own, common - own)), one.choice])
    text = (
        "Each table by itself: for how long its stage waits for it in a step under the common choice, and under the "
        f"best for it alone. {_gain_of_mix(plan)}"
    )
    return f"{paragraph(text)}\n{aligned(rows)}"


def _gain_of_mix(plan: Plan) -> str:
    if len({one.choice for one in plan.tables_alone}) == 1:
        return "All would take the same, so there is nothing to mix."
    saved, step = most_saved_seconds(plan.tables_alone), plan.predicted_seconds.per_step
    text = f"A mix would save at most {short_seconds(saved)} of {short_seconds(step)} a step, {saved / step:.1%}"
    return f"{text}: no more than a tie." if saved <= TIE_FRACTION * step else f"{text}; it is not offered."


def _size_table(plan: Plan) -> str:
    rows = [["best strategy", "ranks", "step", "waiting", "HBM"]]
    for c in best_by_size(plan.candidates):
        times = (short_seconds(c.step_seconds), short_seconds(c.exposed_seconds))
        rows.append([_strategy(c), str(c.parallel_size), *times, f"{c.memory_bytes / GIB:.1f} GiB"])
    return f"The fastest that fits at each number of ranks P.\n{aligned(rows)}"


def _candidate_table(plan: Plan) -> str:
    rows = [["partition", "ranks", "nodes", "forward", "backward", "sync", "per step", "step", "memory", ""]]
    for index, candidate in enumerate(plan.candidates):
        counts = (candidate.forward_bytes, candidate.backward_bytes, candidate.sync_bytes, candidate.bytes_per_step)
        known = candidate.rejected_by is not Rejection.SHAPE
        verdict = "chosen" if index == 0 else "" if candidate.feasible else f"no: {candidate.rejected_by}"
        numbers = [*map(format_bytes, counts), short_seconds(candidate.step_seconds)]
        cells = [cell if known else "-" for cell in (*numbers, format_bytes(candidate.memory_bytes))]
        rows.append([_strategy(candidate), str(candidate.parallel_size), str(candidate.nodes), *cells, verdict])
    caption = (
        "Candidates. Bytes that one rank sends: forward and backward of one table in one micro-batch, sync of one "
        "table a step, and all tables of the busiest stage per step; predicted step; memory of a rank."
    )
    return f"{paragraph(caption)}\n{aligned(rows)}"


def _rejections(plan: Plan) -> list[str]:
    rejected = [paragraph(f"{c.label}: {c.reason}.", indent="  ") for c in plan.candidates if not c.feasible]
    return ["\n".join(["Rejected.", *rejected])] if rejected else []


def _paper_verdict(plan: Plan) -> str:
    paper = plan.paper_verdict
    if paper is None:
        return paragraph("With one rank a stage there is nothing to share, and the paper's formulas are 0.")
    agrees = paper.partition == plan.verdict_by_bytes
    break_even = (
        "number-wise is cheaper at every row width"
        if paper.break_even_value_dim is None
        else f"the two are equal at a row width v* = {paper.break_even_value_dim:.1f}, and dimension-wise is cheaper "
        f"above it (memory.value_dim = {plan.placements[0].value_dim})"
    )
    return paragraph(
        f"Of our verdict by bytes ({plan.verdict_by_bytes}; forward, backward and table sync together) the paper's "
        f"formulas (forward only, bf16, no expansion, one core, no pre-values) over {paper.ranks} "
        f"ranks say {'the same' if agrees else paper.partition}: number-wise {paper.number_wise_bytes:,.0f} B, "
        f"dimension-wise {paper.dimension_wise_bytes:,.0f} B for each token; {break_even}."
    )


def _memory_table(plan: Plan) -> str:
    total = sum(plan.memory.values())
    rows = [("memory of one rank, busiest stage", "GiB", "share")]
    rows += [(n.replace("_", " "), f"{b / GIB:.3f}", f"{b / total:.1%}") for n, b in plan.memory.items() if b]
    rows.append(("total", f"{total / GIB:.3f}", f"{total / plan.usable_memory_bytes:.1%} of usable"))
    return aligned(rows)


def _limits(plan: Plan) -> str:
    picks = f"skewed (Zipf, exponent {plan.zipf_exponent:g})" if plan.zipf_exponent else "equally likely"
    return paragraph(
        f"Assumed: rows are {picks}; the numbers of profile {plan.profile}. Not modelled: work that is the same for "
        "every candidate, contention, waits of the host; `--explain` has the list."
    )


def _not_modelled() -> str:
    return "\n".join(["Not modelled.", *(paragraph(f"- {text}", indent="  ") for text in NOT_MODELLED)])

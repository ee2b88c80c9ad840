"""A plan in words and tables for the person who has to trust it. Plain text, at most 120 columns."""

import textwrap
from collections.abc import Sequence

from ultramem_megatron.planning.plan import Candidate, Plan, Rejection
from ultramem_megatron.units import GIB, format_bytes

WIDTH = 120

NOT_MODELLED = (
    "Time. Candidates are ranked by bytes alone: no latency, no size of messages, no bandwidth that differs between "
    "links inside a node and between nodes, no cost of reading rows from memory, no overlap with dense blocks. Across "
    "nodes a layout that sends more bytes in fewer, larger messages can be faster.",
    "Skew. Rows are taken as equally likely. Hot rows make some owners of a table that is split by rows busier than "
    "others, which is measured as memory/owner_skew; and they repeat more often, which lets number-wise send less.",
    "Traffic that is the same for every candidate: tensor and pipeline parallel, gradients of the dense model.",
    "Memory: activations and lookup buffers are estimates (unfused attention); the padding of "
    "Megatron's buffers and the workspace of kernels are not counted.",
)


def summary(plan: Plan) -> str:
    """The choice, what it costs, and the nearest rivals: what ``ultramem plan`` prints."""
    return "\n\n".join([_heading(plan), *_choice(plan)])


def explain(plan: Plan) -> str:
    """Everything: choice, all candidates, rejections, the paper's verdict, memory, what is left out."""
    sections = [_heading(plan), *_choice(plan)]
    if plan.candidates:
        sections += [_candidate_table(plan), *_rejections(plan), _bytes_verdict(plan)]
    return "\n\n".join([*sections, _memory_table(plan), _not_modelled()])


def _heading(plan: Plan) -> str:
    settings = plan.config_summary
    tensor, pipeline = int(settings["parallelism.tensor"]), int(settings["parallelism.pipeline"])
    data = plan.world_size // (tensor * pipeline)
    return _paragraph(
        f"Plan {plan.hash[:12]} for {plan.cluster}: {plan.world_size} ranks = tensor {tensor} x data {data} x "
        f"pipeline {pipeline}, {format_bytes(plan.usable_memory_bytes)} usable memory a rank."
    )


def _choice(plan: Plan) -> list[str]:
    chosen = plan.chosen
    if chosen is None:
        return ["The model has no memory layers, so there is no table to split."]
    tables = len(plan.placements)
    stage_ranks = plan.world_size // int(plan.config_summary["parallelism.pipeline"])
    copies = stage_ranks // chosen.parallel_size
    placement = plan.placements[0]
    lines = [
        f"Choice: {chosen.label}, {copies} {'copy' if copies == 1 else 'copies'} of each table. "
        f"{tables} {'table' if tables == 1 else 'tables'} of {placement.num_rows:,} rows x {placement.value_dim}"
        f"{_pre_values(plan)}, at spans {', '.join(p.span for p in plan.placements)}.",
        f"A rank sends {format_bytes(plan.predicted.per_step)} a step: "
        f"{format_bytes(plan.predicted.forward_per_micro_batch)} forward and "
        f"{format_bytes(plan.predicted.backward_per_micro_batch)} backward in each micro-batch, "
        f"{format_bytes(plan.predicted.table_sync_per_step)} once a step to keep copies of a shard equal.",
        *_pending(plan),
        _rivals(plan, chosen),
    ]
    return ["\n".join(_paragraph(line) for line in lines)]


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
    others = [f"{c.label} ({_ratio(c, chosen)})" for c in feasible[1:4]]
    text = f"Fewest bytes of the {len(feasible)} candidates that fit"
    text += f"; next: {', '.join(others)}." if others else "; there is no other."
    if plan.tied_with:
        text += f" It is a tie with {', '.join(plan.tied_with)}: the bytes give no reason to prefer either."
    pinned_out = [c for c in plan.candidates if c.rejected_by is Rejection.PIN]
    better = [c for c in pinned_out if c.bytes_per_step < chosen.bytes_per_step]
    if better:
        best = min(better, key=lambda c: c.bytes_per_step)
        text += f" The settings exclude {best.label}, which sends less ({_ratio(best, chosen)}; {best.reason})."
    return text


def _ratio(candidate: Candidate, chosen: Candidate) -> str:
    if chosen.bytes_per_step == 0:
        return format_bytes(candidate.bytes_per_step)
    return f"{candidate.bytes_per_step / chosen.bytes_per_step:.2f} times as many"


def _candidate_table(plan: Plan) -> str:
    rows = [["partition", "ranks", "forward", "backward", "sync", "per step", "memory", ""]]
    for index, candidate in enumerate(plan.candidates):
        counts = (candidate.forward_bytes, candidate.backward_bytes, candidate.sync_bytes, candidate.bytes_per_step)
        known = candidate.rejected_by is not Rejection.SHAPE
        verdict = "chosen" if index == 0 else "" if candidate.feasible else f"rejected: {candidate.rejected_by}"
        numbers = [format_bytes(count) if known else "-" for count in (*counts, candidate.memory_bytes)]
        rows.append([str(candidate.partition), str(candidate.parallel_size), *numbers, verdict])
    caption = (
        "Candidates. Bytes that one rank sends: forward and backward of one table in one micro-batch, sync of one "
        "table a step, and all tables of the busiest stage per step."
    )
    return f"{_paragraph(caption)}\n{_table(rows)}"


def _rejections(plan: Plan) -> list[str]:
    rejected = [_paragraph(f"{c.label}: {c.reason}.", indent="  ") for c in plan.candidates if not c.feasible]
    return ["\n".join(["Rejected.", *rejected])] if rejected else []


def _bytes_verdict(plan: Plan) -> str:
    text = f"Verdict by bytes: {plan.verdict_by_bytes}, forward, backward and table sync together."
    paper = plan.paper_verdict
    if paper is None:
        return _paragraph(f"{text} With one rank a stage there is nothing to share, and the paper's formulas are 0.")
    agrees = paper.partition == plan.verdict_by_bytes
    break_even = (
        "number-wise is cheaper at every row width"
        if paper.break_even_value_dim is None
        else f"the two are equal at a row width v* = {paper.break_even_value_dim:.1f}, and dimension-wise is cheaper "
        f"above it (memory.value_dim = {plan.placements[0].value_dim})"
    )
    return _paragraph(
        f"{text} The paper's formulas (forward only, bf16, no expansion, one core, no pre-values) over {paper.ranks} "
        f"ranks say {'the same' if agrees else paper.partition}: number-wise {paper.number_wise_bytes:,.0f} B, "
        f"dimension-wise {paper.dimension_wise_bytes:,.0f} B for each token; {break_even}."
    )


def _memory_table(plan: Plan) -> str:
    total = sum(plan.memory.values())
    rows = [("memory of one rank, busiest stage", "GiB", "share")]
    rows += [(n.replace("_", " "), f"{b / GIB:.3f}", f"{b / total:.1%}") for n, b in plan.memory.items() if b]
    rows.append(("total", f"{total / GIB:.3f}", f"{total / plan.usable_memory_bytes:.1%} of usable"))
    return _table(rows)


def _not_modelled() -> str:
    return "\n".join(["Not modelled.", *(_paragraph(f"- {text}", indent="  ") for text in NOT_MODELLED)])


def _paragraph(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent * 2, break_on_hyphens=False)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """First and last column to the left, the numbers between them to the right."""
    first_width, *middle_widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for first, *middle, last in rows:
        numbers = (cell.rjust(width) for cell, width in zip(middle, middle_widths, strict=True))
        lines.append("  ".join(["", first.ljust(first_width), *numbers, last]).rstrip())
    return "\n".join(lines)

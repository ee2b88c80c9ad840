"""The choice: candidates that fit, ranked by the bytes that one rank sends in one optimizer step."""

import math
from typing import Any

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.enumerate import enumerate_candidates, pin_reason
from ultramem_megatron.planning.memory_cost import rank_memory
from ultramem_megatron.planning.paper_cost import (
    paper_break_even_value_dim,
    paper_dimension_wise_bytes,
    paper_number_wise_bytes,
)
from ultramem_megatron.planning.plan import (
    Candidate,
    PaperVerdict,
    Plan,
    PredictedBytes,
    Rejection,
    TablePlacement,
    sha256_of,
    summarize_config,
)
from ultramem_megatron.planning.workload import Workload, workload_of
from ultramem_megatron.units import GIB

# A tie in bytes goes to the earlier one: number-wise sends no scores, and needs no divisor of the row width.
TIE_ORDER = (
    PartitionName.NUMBER_WISE,
    PartitionName.NUMBER_WISE_POOLED,
    PartitionName.DIMENSION_WISE,
    PartitionName.GRID,
    PartitionName.REPLICATED,
)


def choose_plan(config: RunConfig, cluster: ClusterSpec) -> Plan:
    """The plan that sends the fewest bytes among those that fit, honouring ``memory.partition`` and
    ``memory.parallel_size`` where they are set.

    Raises:
        ConfigError: The degrees or the batch do not fit the cluster's ranks.
        PlanError: The pins contradict each other, or nothing fits; says how many GiB are missing and what helps.
    """
    workload = workload_of(config, cluster.num_ranks)
    if not config.memory.span_list:
        return _dense_plan(config, cluster, workload)
    candidates = sorted(enumerate_candidates(config, cluster), key=_merit)
    chosen = candidates[0]
    if not chosen.feasible:
        raise PlanError(_nothing_fits(config, candidates, cluster))
    tables = workload.busiest_stage_tables
    return Plan(
        **_identity(config, cluster),
        memory_parallel_size=chosen.parallel_size,
        placements=_placements(config, chosen),
        predicted=PredictedBytes(
            forward_per_micro_batch=tables * chosen.forward_bytes,
            backward_per_micro_batch=tables * chosen.backward_bytes,
            table_sync_per_step=tables * chosen.sync_bytes,
            per_step=chosen.bytes_per_step,
            pending_per_micro_batch=max(workload.pending_bytes),
        ),
        memory=chosen.memory,
        candidates=tuple(candidates),
        verdict_by_bytes=chosen.partition,
        tied_with=tuple(c.label for c in candidates[1:] if c.feasible and c.bytes_per_step == chosen.bytes_per_step),
        paper_verdict=_paper_verdict(workload, chosen.parallel_size),
    )


def _merit(candidate: Candidate) -> tuple[bool, float, int, int]:
    """Sort key: feasible first, then fewest bytes, then the tie order, then the smaller group."""
    bytes_per_step = math.inf if candidate.rejected_by is Rejection.SHAPE else candidate.bytes_per_step
    return not candidate.feasible, bytes_per_step, TIE_ORDER.index(candidate.partition), candidate.parallel_size


def _identity(config: RunConfig, cluster: ClusterSpec) -> dict[str, Any]:
    summary = summarize_config(config)
    return {
        "cluster": cluster.name,
        "world_size": cluster.num_ranks,
        "config_summary": summary,
        "config_fingerprint": sha256_of(summary),
        "usable_memory_bytes": cluster.usable_bytes,
    }


def _dense_plan(config: RunConfig, cluster: ClusterSpec, workload: Workload) -> Plan:
    memory = rank_memory(config, workload, PartitionName.REPLICATED, 1)
    if memory.total_bytes > cluster.usable_bytes:
        raise PlanError(
            f'the model does not fit cluster "{cluster.name}": {_shortage(memory.parts, cluster)}. '
            f"{_remedies(memory.parts, tables_split=True)}"
        )
    return Plan(
        **_identity(config, cluster),
        memory_parallel_size=1,
        placements=(),
        predicted=PredictedBytes(),
        memory=memory.parts,
        candidates=(),
        verdict_by_bytes=None,
    )


def _placements(config: RunConfig, chosen: Candidate) -> tuple[TablePlacement, ...]:
    return tuple(
        TablePlacement(
            table=index,
            span=str(span),
            partition=chosen.partition,
            parallel_size=chosen.parallel_size,
            node_size=chosen.node_size,
            num_rows=config.memory.num_rows,
            value_dim=config.memory.value_dim,
        )
        for index, span in enumerate(config.memory.span_list)
    )


def _paper_verdict(workload: Workload, parallel_size: int) -> PaperVerdict | None:
    """The paper's comparison over the chosen group, or over the whole stage when tables are replicated."""
    ranks = parallel_size if parallel_size > 1 else workload.stage_ranks
    if ranks == 1:
        return None
    shape = workload.lookup
    number_wise = paper_number_wise_bytes(1, shape.picks, shape.value_dim, ranks)
    dimension_wise = paper_dimension_wise_bytes(1, shape.picks, shape.value_dim, ranks)
    break_even = paper_break_even_value_dim(shape.picks, ranks)
    return PaperVerdict(
        ranks=ranks,
        number_wise_bytes=number_wise,
        dimension_wise_bytes=dimension_wise,
        break_even_value_dim=None if math.isinf(break_even) else break_even,
        partition=PartitionName.NUMBER_WISE if number_wise <= dimension_wise else PartitionName.DIMENSION_WISE,
    )


def _nothing_fits(config: RunConfig, candidates: list[Candidate], cluster: ClusterSpec) -> str:
    """One paragraph: the smallest candidate that the pins allow, what it lacks by part, and what helps."""
    head = f'no partition of the memory tables fits cluster "{cluster.name}"'
    pinned_out = [c for c in candidates if c.rejected_by is Rejection.PIN and c.memory_bytes <= cluster.usable_bytes]
    escape = f"{pinned_out[0].label} would fit, but {pinned_out[0].reason}. " if pinned_out else ""
    allowed = [c for c in candidates if not pin_reason(config.memory, c.partition, c.parallel_size)]
    too_big = [c for c in allowed if c.rejected_by is Rejection.CAPACITY]
    if not too_big:
        shapes = "; ".join(f"{c.label}: {c.reason}" for c in allowed)
        settings = ["memory.partition", "memory.parallel_size"]
        settings += ["memory.node_size"] if config.memory.partition is PartitionName.GRID else []
        settings += ["memory.value_dim"] + (["memory.pre_value_dim"] if config.memory.pre_value_dim else [])
        return f"{head}: {shapes}. {escape}Change {', '.join(settings[:-1])} or {settings[-1]}"
    smallest = min(too_big, key=lambda c: c.memory_bytes)
    return (
        f"{head}. The smallest, {smallest.label}, {_shortage(smallest.memory, cluster)}. {escape}"
        f"{_remedies(smallest.memory, tables_split=smallest.parallel_size > 1)}"
    )


def _shortage(parts: dict[str, float], cluster: ClusterSpec) -> str:
    total = sum(parts.values())
    listed = ", ".join(f"{name.replace('_', ' ')} {count / GIB:.2f}" for name, count in parts.items() if count)
    return (
        f"needs {total / GIB:.2f} GiB a rank, {(total - cluster.usable_bytes) / GIB:.2f} GiB more than the "
        f"{cluster.usable_bytes / GIB:.2f} GiB usable ({listed} GiB)"
    )


def _remedies(parts: dict[str, float], *, tables_split: bool) -> str:
    """What helps against the largest group of parts."""
    groups = {"table": 0.0, "dense": 0.0, "expert": 0.0, "work": 0.0}
    for name, count in parts.items():
        kind = name.split("_")[0]
        groups[kind if kind in groups else "work"] += count
    match max(groups, key=lambda name: groups[name]):
        case "table":
            share = "more ranks to share the tables" if tables_split else "a larger memory.parallel_size"
            return f"The tables weigh most: use {share}, or lower memory.keys_per_side or memory.value_dim"
        case "dense":
            return "The dense model weighs most: raise parallelism.tensor or pipeline, or lower model.hidden or layers"
        case "expert":
            return "The experts weigh most: raise parallelism.expert, tensor or pipeline, or lower model.experts"
        case _:
            return (
                "Activations weigh most: lower training.micro_batch_size, set training.recompute=full, or raise "
                "parallelism.tensor or pipeline"
            )

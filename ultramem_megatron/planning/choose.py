"""The choice: candidates that fit, ranked by the seconds of an optimizer step, or by the bytes that a rank sends."""

import math
from typing import Any

from ultramem_megatron.config.memory import GroupPlacement, PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.enumerate import candidates_of
from ultramem_megatron.planning.memory_cost import rank_memory
from ultramem_megatron.planning.messages import predicted_messages
from ultramem_megatron.planning.paper_cost import (
    paper_break_even_value_dim,
    paper_dimension_wise_bytes,
    paper_number_wise_bytes,
)
from ultramem_megatron.planning.plan import (
    Candidate,
    CostModel,
    PaperVerdict,
    Plan,
    PredictedBytes,
    PredictedSeconds,
    Rejection,
    TablePlacement,
    sha256_of,
    summarize_config,
)
from ultramem_megatron.planning.problem import Problem, pose
from ultramem_megatron.planning.remedies import dense_model_does_not_fit, nothing_fits
from ultramem_megatron.planning.workload import Workload

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


def choose_plan(
    config: RunConfig,
    cluster: ClusterSpec,
    *,
    cost_model: CostModel = CostModel.TIME,
    zipf_exponent: float = 0.0,
    current: Plan | None = None,
) -> Plan:
    """The plan with the shortest step among those that fit, honouring the pins of ``config.memory``.

    Args:
        config: The run.
        cluster: Its machines.
        cost_model: Rank by seconds, or by bytes as the paper does.
        zipf_exponent: Skew of the picks, as in ``skew.py``.
        current: The plan of the run so far, which a tie is decided for.

    Raises:
        ConfigError: The degrees or the batch do not fit the cluster's ranks.
        PlanError: The pins contradict each other, or nothing fits; says how many GiB are missing and what helps.
    """
    problem = pose(config, cluster, zipf_exponent)
    if not config.memory.span_list:
        return _dense_plan(problem, cost_model)
    candidates, tied = rank_candidates(candidates_of(problem), cost_model, current)
    chosen = candidates[0]
    if not chosen.feasible:
        raise PlanError(nothing_fits(config, candidates, cluster))
    workload, tables = problem.workload, problem.workload.busiest_stage_tables
    feasible = [c for c in candidates if c.feasible]
    return Plan(
        **_identity(problem, cost_model),
        memory_parallel_size=chosen.parallel_size,
        memory_placement=chosen.placement,
        chosen=chosen,
        placements=_placements(config, chosen),
        predicted=PredictedBytes(
            forward_per_micro_batch=tables * chosen.forward_bytes,
            backward_per_micro_batch=tables * chosen.backward_bytes,
            table_sync_per_step=tables * chosen.sync_bytes,
            per_step=chosen.bytes_per_step,
            pending_per_micro_batch=max(workload.pending_bytes),
        ),
        predicted_seconds=_predicted_seconds(problem, chosen),
        predicted_messages=predicted_messages(problem, chosen),
        memory=chosen.memory,
        candidates=tuple(candidates),
        verdict_by_bytes=min(feasible, key=_by_bytes).partition,
        verdict_by_time=min(feasible, key=_by_time).partition,
        tied_with=tuple(c.label for c in tied),
        paper_verdict=_paper_verdict(workload, chosen.parallel_size),
    )


def rank_candidates(
    candidates: list[Candidate], cost_model: CostModel, current: Plan | None = None
) -> tuple[list[Candidate], list[Candidate]]:
    """Best first, what is out last; and those that tie with the first.

    Among steps that are equally long the current layout wins, then the one that keeps the links least busy.
    """
    if cost_model is CostModel.BYTES:
        ranked = sorted(candidates, key=_by_bytes)
        best = ranked[0]
        level = [c for c in ranked if c.feasible and c.bytes_per_step == best.bytes_per_step]
        # where the ranks are makes no difference to bytes
        level = [c for c in level if c.placement is best.placement]
    else:
        ranked = sorted(candidates, key=_by_time)
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


def _by_bytes(candidate: Candidate) -> tuple[bool, float, int, int, bool]:
    """Sort key: feasible first, then fewest bytes, then the tie order, then the smaller group."""
    return (not candidate.feasible, *_known_last(candidate, candidate.bytes_per_step))


def _by_time(candidate: Candidate) -> tuple[bool, float, int, int, bool]:
    """Sort key: feasible first, then the shortest step, then as ``_by_bytes``."""
    return (not candidate.feasible, *_known_last(candidate, candidate.step_seconds))


def _known_last(candidate: Candidate, cost: float) -> tuple[float, int, int, bool]:
    known = math.inf if candidate.rejected_by is Rejection.SHAPE else cost
    is_spread = candidate.placement is GroupPlacement.SPREAD
    return known, TIE_ORDER.index(candidate.partition), candidate.parallel_size, is_spread


def _predicted_seconds(problem: Problem, chosen: Candidate) -> PredictedSeconds:
    tables = problem.workload.busiest_stage_tables
    return PredictedSeconds(
        forward_per_micro_batch=tables * chosen.forward_seconds,
        backward_per_micro_batch=tables * chosen.backward_seconds,
        table_sync_per_step=tables * chosen.sync_seconds,
        exposed_per_step=chosen.exposed_seconds,
        dense_per_step=_dense_seconds(problem),
        per_step=chosen.step_seconds,
        uncertainty_per_step=chosen.uncertainty_seconds,
    )


def _dense_seconds(problem: Problem) -> float:
    return problem.dense.turns * max(problem.dense.stage_seconds)


def _identity(problem: Problem, cost_model: CostModel) -> dict[str, Any]:
    cluster, summary = problem.cluster, summarize_config(problem.config)
    return {
        "cluster": cluster.name,
        "world_size": cluster.num_ranks,
        "profile": cluster.profile.name,
        "cost_model": cost_model,
        "zipf_exponent": problem.workload.lookup.zipf_exponent,
        "config_summary": summary,
        "config_fingerprint": sha256_of(summary),
        "usable_memory_bytes": cluster.usable_bytes,
    }


def _dense_plan(problem: Problem, cost_model: CostModel) -> Plan:
    memory = rank_memory(problem.config, problem.workload, PartitionName.REPLICATED, 1)
    if memory.total_bytes > problem.cluster.usable_bytes:
        raise PlanError(dense_model_does_not_fit(memory.parts, problem.cluster))
    seconds = _dense_seconds(problem)
    return Plan(
        **_identity(problem, cost_model),
        memory_parallel_size=1,
        placements=(),
        predicted=PredictedBytes(),
        predicted_seconds=PredictedSeconds(dense_per_step=seconds, per_step=seconds),
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

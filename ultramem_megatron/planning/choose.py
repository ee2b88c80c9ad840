"""The choice: candidates that fit, ranked by the seconds of an optimizer step, or by the bytes that a rank sends."""

import math
from typing import Any

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.enumerate import candidates_of
from ultramem_megatron.planning.memory_cost import rank_memory
from ultramem_megatron.planning.messages import predicted_messages
from ultramem_megatron.planning.mix import tables_alone
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
    TablePlacement,
    sha256_of,
)
from ultramem_megatron.planning.plan_match import summarize_config
from ultramem_megatron.planning.problem import Problem, pose
from ultramem_megatron.planning.ranking import rank_candidates, verdicts
from ultramem_megatron.planning.remedies import dense_model_does_not_fit, nothing_fits
from ultramem_megatron.planning.sensitivity import flips_of
from ultramem_megatron.planning.workload import Workload


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
        raise PlanError(nothing_fits(problem, candidates))
    workload, tables = problem.workload, problem.workload.busiest_stage_tables
    best_by_bytes, best_by_time = verdicts(candidates)
    plan = Plan(
        **_identity(problem, cost_model),
        memory_parallel_size=chosen.parallel_size,
        memory_placement=chosen.placement,
        chosen=chosen,
        placements=_placements(config, chosen),
        tables_alone=tables_alone(problem, candidates, chosen),
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
        verdict_by_bytes=best_by_bytes.partition,
        verdict_by_time=best_by_time.partition,
        tied_with=tuple(c.label for c in tied),
        paper_verdict=_paper_verdict(workload, chosen.parallel_size),
    )
    return plan.model_copy(update={"flips": flips_of(problem, plan)})


def _predicted_seconds(problem: Problem, chosen: Candidate) -> PredictedSeconds:
    tables = problem.workload.busiest_stage_tables
    return PredictedSeconds(
        forward_per_micro_batch=tables * chosen.forward_seconds,
        backward_per_micro_batch=tables * chosen.backward_seconds,
        table_sync_per_step=tables * chosen.sync_seconds,
        exposed_per_step=chosen.exposed_seconds,
        dense_per_step=_dense_seconds(problem),
        per_step=chosen.step_seconds,
        window_forward=min(window.forward_seconds for window in problem.dense.windows),
        window_backward=min(window.backward_seconds for window in problem.dense.windows),
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
        raise PlanError(dense_model_does_not_fit(problem, memory.parts))
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

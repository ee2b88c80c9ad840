"""All candidate plans of a run: each partition over each number of ranks, with its cost or why it is out."""

import math
from typing import Any

from ultramem_megatron.config.memory import GroupPlacement, MemoryConfig, PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.memory_cost import rank_memory
from ultramem_megatron.planning.placement import mem_shape
from ultramem_megatron.planning.plan import Candidate, Rejection
from ultramem_megatron.planning.problem import Problem, pose
from ultramem_megatron.planning.split import Split, split_cost
from ultramem_megatron.units import GIB

SPLIT_PARTITIONS = (
    PartitionName.NUMBER_WISE,
    PartitionName.NUMBER_WISE_POOLED,
    PartitionName.DIMENSION_WISE,
    PartitionName.GRID,
)
SPLIT_BY_ROWS = (PartitionName.NUMBER_WISE, PartitionName.NUMBER_WISE_POOLED)


def enumerate_candidates(config: RunConfig, cluster: ClusterSpec, zipf_exponent: float = 0.0) -> list[Candidate]:
    """Every split of every table, in no order of merit. Candidates outside the pins are listed as rejected, so that
    a report can say what a pin costs.

    Raises:
        ConfigError: The degrees or the batch do not fit the cluster's ranks.
        PlanError: The pins of ``config.memory`` contradict each other.
    """
    return candidates_of(pose(config, cluster, zipf_exponent))


def candidates_of(problem: Problem) -> list[Candidate]:
    """As ``enumerate_candidates``."""
    memory, cluster, stage_ranks = problem.config.memory, problem.cluster, problem.workload.stage_ranks
    check_pins(memory, stage_ranks)
    splits = [Split(PartitionName.REPLICATED, 1, 1, GroupPlacement.PACKED)]
    for ranks in divisors(stage_ranks)[1:]:
        for partition in SPLIT_PARTITIONS:
            if not _is_offered(partition, memory, cluster, ranks):
                continue
            node_size = node_size_of(memory, cluster, ranks) if partition is PartitionName.GRID else 1
            splits += [Split(partition, ranks, node_size, place) for place in _places(partition, problem, ranks)]
    return [_candidate(problem, split) for split in splits]


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    lower = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return sorted({*lower, *(number // one for one in lower)})


def _places(partition: PartitionName, problem: Problem, ranks: int) -> list[GroupPlacement]:
    """Spread out as well, where that is another thing or asked for. The nodes of a grid are neighbours."""
    stage_ranks, node_ranks = problem.workload.stage_ranks, problem.cluster.gpus_per_node
    packed, spread = (
        mem_shape(one, ranks, stage_ranks, node_ranks) for one in (GroupPlacement.PACKED, GroupPlacement.SPREAD)
    )
    asked_for = problem.config.memory.placement is GroupPlacement.SPREAD
    if partition is PartitionName.GRID or (packed == spread and not asked_for):
        return [GroupPlacement.PACKED]
    # a group of the whole stage has nothing to spread over
    whole = ranks == stage_ranks
    return [GroupPlacement.SPREAD] if whole and asked_for else [GroupPlacement.PACKED, GroupPlacement.SPREAD]


def _is_offered(partition: PartitionName, memory: MemoryConfig, cluster: ClusterSpec, ranks: int) -> bool:
    """A grid inside one node, or of nodes of one rank, is another candidate; only who asked for it is told so."""
    asked_for = memory.partition is PartitionName.GRID
    return partition is not PartitionName.GRID or asked_for or 1 < node_size_of(memory, cluster, ranks) < ranks


def check_pins(memory: MemoryConfig, stage_ranks: int) -> None:
    """Refuse a pinned partition that no allowed number of ranks can carry out.

    Raises:
        PlanError: Replicated over several ranks, or a split over one.
    """
    pinned_ranks = pinned_parallel_size(memory)
    if memory.partition is PartitionName.REPLICATED and pinned_ranks not in (None, 1):
        raise PlanError(
            f"memory.partition = replicated contradicts memory.parallel_size = {pinned_ranks}: a replicated table "
            "is shared by 1 rank; set memory.parallel_size to auto or 1, or choose another partition"
        )
    if memory.partition in SPLIT_PARTITIONS and pinned_ranks == 1:
        raise PlanError(
            f"memory.partition = {memory.partition} contradicts memory.parallel_size = 1: there is nothing to split "
            "over 1 rank; set memory.parallel_size to auto or above 1, or memory.partition to auto or replicated"
        )
    if memory.partition in SPLIT_PARTITIONS and stage_ranks == 1:
        raise PlanError(
            f"memory.partition = {memory.partition} needs several ranks in a pipeline stage, and there is 1; "
            "run on more ranks, or set memory.partition to auto or replicated"
        )


def pinned_parallel_size(memory: MemoryConfig) -> int | None:
    """``memory.parallel_size`` as a number; none for ``auto``."""
    return None if memory.parallel_size == "auto" else int(memory.parallel_size)


def node_size_of(memory: MemoryConfig, cluster: ClusterSpec, ranks: int) -> int:
    """Ranks of a grid's group of ``ranks`` that count as one node: what ``memory.node_size`` says, or as many as always
    lie in one node of the cluster. Groups are consecutive ranks, so theirs begin where a node does or a part of one."""
    return math.gcd(ranks, cluster.gpus_per_node) if memory.node_size == "auto" else int(memory.node_size)


def pin_reason(memory: MemoryConfig, candidate: Split | Candidate) -> str:
    """Why the pins exclude a candidate; empty when they allow it."""
    if memory.partition not in (PartitionName.AUTO, candidate.partition):
        return f"memory.partition is set to {memory.partition}"
    if pinned_parallel_size(memory) not in (None, candidate.parallel_size):
        return f"memory.parallel_size is set to {memory.parallel_size}"
    if memory.placement not in (GroupPlacement.AUTO, candidate.placement) and candidate.parallel_size > 1:
        return f"memory.placement is set to {memory.placement}"
    return ""


def _candidate(problem: Problem, split: Split) -> Candidate:
    config, workload = problem.config, problem.workload
    partition, ranks, node_size = split.partition, split.parallel_size, split.node_size
    on_gpu = problem.cluster.profile.device == "gpu"
    memory = rank_memory(config, workload, partition, ranks, node_size, on_gpu=on_gpu)
    shape_reason = _shape_reason(config.memory, partition, ranks, node_size)
    reasons = (
        (Rejection.SHAPE, shape_reason),
        (Rejection.PIN, pin_reason(config.memory, split)),
        (Rejection.CAPACITY, _capacity_reason(memory.total_bytes, problem.cluster)),
    )
    rejected_by, reason = next(((kind, text) for kind, text in reasons if text), (None, ""))
    return Candidate(
        partition=partition,
        parallel_size=ranks,
        placement=split.placement,
        nodes=split.group(problem).nodes,
        node_size=node_size if partition is PartitionName.GRID else None,
        **(_no_cost() if shape_reason else split_cost(problem, split)),
        memory_bytes=memory.total_bytes,
        memory=memory.parts,
        feasible=rejected_by is None,
        rejected_by=rejected_by,
        reason=reason,
    )


def _no_cost() -> dict[str, Any]:
    """Of what cannot be."""
    return {"forward_bytes": 0, "backward_bytes": 0, "sync_bytes": 0, "bytes_per_step": 0}


def _shape_reason(memory: MemoryConfig, partition: PartitionName, ranks: int, node_size: int) -> str:
    if partition is PartitionName.DIMENSION_WISE:
        return _width_reason(memory, ranks)
    if partition is PartitionName.GRID:
        return _grid_reason(memory, ranks, node_size)
    if partition in SPLIT_BY_ROWS and memory.num_rows < ranks:
        return f"{ranks} ranks are more than the table's {memory.num_rows} rows"
    return ""


def _width_reason(memory: MemoryConfig, ranks: int) -> str:
    widths = {"value_dim": memory.value_dim, "pre_value_dim": memory.pre_value_dim}
    odd = [f"memory.{name} = {width} does not divide by {ranks}" for name, width in widths.items() if width % ranks]
    return " and ".join(odd)


def _grid_reason(memory: MemoryConfig, ranks: int, node_size: int) -> str:
    if ranks % node_size:
        return f"nodes of memory.node_size = {node_size} ranks do not make up {ranks}"
    if node_size == ranks:
        return f"its {ranks} ranks are one node, so it would be dimension_wise"
    if node_size == 1:
        return "each of its ranks is a node of its own, so it would be number_wise"
    nodes = ranks // node_size
    if memory.num_rows < nodes:
        return f"{nodes} nodes are more than the table's {memory.num_rows} rows"
    return _width_reason(memory, node_size)


def _capacity_reason(needed_bytes: float, cluster: ClusterSpec) -> str:
    if needed_bytes <= cluster.usable_bytes:
        return ""
    return f"needs {needed_bytes / GIB:.2f} GiB a rank of {cluster.usable_bytes / GIB:.2f} GiB usable"

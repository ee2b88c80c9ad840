"""All candidate plans of a run: each partition over each number of ranks, with its cost or why it is out."""

import math

from ultramem_megatron.config.memory import MemoryConfig, PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.comm_cost import SyncBytes, WireBytes, partition_bytes, table_sync_bytes
from ultramem_megatron.planning.memory_cost import layer_shard_elements, rank_memory
from ultramem_megatron.planning.plan import Candidate, Rejection
from ultramem_megatron.planning.workload import Workload, workload_of
from ultramem_megatron.units import GIB

SPLIT_PARTITIONS = (
    PartitionName.NUMBER_WISE,
    PartitionName.NUMBER_WISE_POOLED,
    PartitionName.DIMENSION_WISE,
    PartitionName.GRID,
)
SPLIT_BY_ROWS = (PartitionName.NUMBER_WISE, PartitionName.NUMBER_WISE_POOLED)


def enumerate_candidates(config: RunConfig, cluster: ClusterSpec) -> list[Candidate]:
    """Every split of every table, in no order of merit. Candidates outside the pins are listed as rejected, so that
    a report can say what a pin costs.

    Raises:
        ConfigError: The degrees or the batch do not fit the cluster's ranks.
        PlanError: ``memory.partition`` and ``memory.parallel_size`` contradict each other.
    """
    workload = workload_of(config, cluster.num_ranks)
    check_pins(config.memory, workload.stage_ranks)
    splits = [(PartitionName.REPLICATED, 1)]
    for ranks in range(2, workload.stage_ranks + 1):
        if workload.stage_ranks % ranks == 0:
            splits += [(p, ranks) for p in SPLIT_PARTITIONS if _is_offered(p, config.memory, cluster, ranks)]
    return [_candidate(config, cluster, workload, partition, ranks) for partition, ranks in splits]


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


def pin_reason(memory: MemoryConfig, partition: PartitionName, ranks: int) -> str:
    """Why the pins exclude a candidate; empty when they allow it."""
    if memory.partition not in (PartitionName.AUTO, partition):
        return f"memory.partition is set to {memory.partition}"
    if pinned_parallel_size(memory) not in (None, ranks):
        return f"memory.parallel_size is set to {memory.parallel_size}"
    return ""


def _candidate(
    config: RunConfig, cluster: ClusterSpec, workload: Workload, partition: PartitionName, ranks: int
) -> Candidate:
    node_size = node_size_of(config.memory, cluster, ranks) if partition is PartitionName.GRID else 1
    memory = rank_memory(config, workload, partition, ranks, node_size)
    shape_reason = _shape_reason(config.memory, partition, ranks, node_size)
    wire, sync = WireBytes(), SyncBytes(0, 0)
    if not shape_reason:
        wire = partition_bytes(partition, workload.lookup, ranks, node_size)
        sync = table_sync_bytes(
            shard_elements=layer_shard_elements(config.memory, partition, ranks, node_size),
            replicas=workload.stage_ranks // ranks,
            element_bytes=workload.element_bytes,
        )
    per_step = workload.micro_batches * (wire.forward_bytes + wire.backward_bytes) + sync.total_bytes
    reasons = (
        (Rejection.SHAPE, shape_reason),
        (Rejection.PIN, pin_reason(config.memory, partition, ranks)),
        (Rejection.CAPACITY, _capacity_reason(memory.total_bytes, cluster)),
    )
    rejected_by, reason = next(((kind, text) for kind, text in reasons if text), (None, ""))
    return Candidate(
        partition=partition,
        parallel_size=ranks,
        node_size=node_size if partition is PartitionName.GRID else None,
        forward_bytes=wire.forward_bytes,
        backward_bytes=wire.backward_bytes,
        sync_bytes=sync.total_bytes,
        bytes_per_step=workload.busiest_stage_tables * per_step,
        memory_bytes=memory.total_bytes,
        memory=memory.parts,
        feasible=rejected_by is None,
        rejected_by=rejected_by,
        reason=reason,
    )


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

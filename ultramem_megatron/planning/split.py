"""``Split``: one way of sharing every table, and its cost in bytes and in seconds."""

from dataclasses import dataclass
from typing import Any

from ultramem_megatron.config.memory import GroupPlacement, PartitionName
from ultramem_megatron.planning.comm_cost import partition_bytes
from ultramem_megatron.planning.lookup_time import lookup_time
from ultramem_megatron.planning.memory_cost import layer_shard_elements
from ultramem_megatron.planning.placement import GroupShape, mem_dp_shape, mem_shape
from ultramem_megatron.planning.problem import Problem
from ultramem_megatron.planning.step_time import step_time
from ultramem_megatron.planning.sync_cost import sync_parts, table_sync_bytes


@dataclass(frozen=True, slots=True)
class Split:
    """Strategy, ranks, and where these are."""

    partition: PartitionName
    parallel_size: int
    node_size: int
    """Of a grid; 1 otherwise."""
    placement: GroupPlacement

    def group(self, problem: Problem) -> GroupShape:
        """The ranks that share a copy."""
        workload, cluster = problem.workload, problem.cluster
        return mem_shape(self.placement, self.parallel_size, workload.stage_ranks, cluster.gpus_per_node)

    def copies(self, problem: Problem) -> GroupShape:
        """The ranks that hold the same shard."""
        workload, cluster = problem.workload, problem.cluster
        return mem_dp_shape(self.placement, self.parallel_size, workload.stage_ranks, cluster.gpus_per_node)


def split_cost(problem: Problem, split: Split) -> dict[str, Any]:
    """The fields of a ``Candidate`` that hold bytes sent, and seconds."""
    config, workload, profile = problem.config, problem.workload, problem.cluster.profile
    ranks, node_size = split.parallel_size, split.node_size
    wire = partition_bytes(split.partition, workload.lookup, ranks, node_size)
    elements = layer_shard_elements(config.memory, split.partition, ranks, node_size)
    copies = split.copies(problem)
    sync = table_sync_bytes(shard_elements=elements, replicas=copies.ranks, element_bytes=workload.element_bytes)
    per_step = workload.micro_batches * (wire.forward_bytes + wire.backward_bytes) + sync.total_bytes
    lookup = lookup_time(profile, split.partition, workload.lookup, split.group(problem), node_size)
    sync_time = sync_parts(profile, sync, copies, elements)
    sync_seconds = sum(part.seconds for part in sync_time)
    tables = workload.busiest_stage_tables
    step = step_time(problem.dense, [lookup] * len(problem.dense.windows), sync_seconds, problem.overlap_fraction)
    unsure_sync = sum(part.seconds * profile.uncertainty_fraction(part.path) for part in sync_time)
    unsure = problem.dense.turns * lookup.uncertainty_seconds(profile) + unsure_sync
    return {
        "forward_bytes": wire.forward_bytes,
        "backward_bytes": wire.backward_bytes,
        "sync_bytes": sync.total_bytes,
        "bytes_per_step": tables * per_step,
        "forward_seconds": lookup.forward_seconds,
        "backward_seconds": lookup.backward_seconds,
        "sync_seconds": sync_seconds,
        "phase_seconds": lookup.phases,
        "exposed_seconds": step.exposed_seconds,
        "busy_seconds": step.busy_seconds,
        "uncertainty_seconds": tables * unsure,
        "step_seconds": step.step_seconds,
    }

"""What the planner expects of each collective of a lookup, by name: to be compared with what a run measures."""

from collections.abc import Mapping

from ultramem_megatron.planning.comm_cost import partition_bytes
from ultramem_megatron.planning.lookup_time import lookup_time
from ultramem_megatron.planning.placement import mem_shape
from ultramem_megatron.planning.plan import Candidate, PredictedMessage
from ultramem_megatron.planning.problem import Problem

_PREFIXES = ("inside_", "across_")
"""Of a grid. Both parts are counted together: what travels has the same name."""


def predicted_messages(problem: Problem, chosen: Candidate) -> dict[str, PredictedMessage]:
    """``forward.rows``, ``backward.pre_vector_gradients`` and so on, of one table in one micro-batch."""
    workload, cluster = problem.workload, problem.cluster
    ranks, node_size = chosen.parallel_size, chosen.node_size or 1
    group = mem_shape(chosen.placement, ranks, workload.stage_ranks, cluster.gpus_per_node)
    sent = _by_name(partition_bytes(chosen.partition, workload.lookup, ranks, node_size).breakdown)
    parts = lookup_time(cluster.profile, chosen.partition, workload.lookup, group, node_size).parts
    seconds: dict[str, float] = {}
    for part in parts:
        name = _plain(f"{part.which}.{part.name}")
        if name in sent:
            seconds[name] = seconds.get(name, 0.0) + part.seconds
    return {
        name: PredictedMessage(num_bytes=count, seconds=seconds.get(name, 0.0)) for name, count in sent.items() if count
    }


def _by_name(breakdown: Mapping[str, float]) -> dict[str, float]:
    joined: dict[str, float] = {}
    for name, count in breakdown.items():
        joined[_plain(name)] = joined.get(_plain(name), 0.0) + count
    return joined


def _plain(name: str) -> str:
    which, _, message = name.partition(".")
    for prefix in _PREFIXES:
        message = message.removeprefix(prefix)
    return f"{which}.{message}"

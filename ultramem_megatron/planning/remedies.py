"""What is said when nothing fits: what is missing, and what helps."""

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.enumerate import pin_reason
from ultramem_megatron.planning.plan import Candidate, Rejection
from ultramem_megatron.units import GIB


def dense_model_does_not_fit(parts: dict[str, float], cluster: ClusterSpec) -> str:
    """One paragraph."""
    return (
        f'the model does not fit cluster "{cluster.name}": {_shortage(parts, cluster)}. '
        f"{_remedies(parts, tables_split=True)}"
    )


def nothing_fits(config: RunConfig, candidates: list[Candidate], cluster: ClusterSpec) -> str:
    """One paragraph: the smallest candidate that the pins allow, what it lacks by part, and what helps."""
    head = f'no partition of the memory tables fits cluster "{cluster.name}"'
    pinned_out = [c for c in candidates if c.rejected_by is Rejection.PIN and c.memory_bytes <= cluster.usable_bytes]
    escape = f"{pinned_out[0].label} would fit, but {pinned_out[0].reason}. " if pinned_out else ""
    allowed = [c for c in candidates if not pin_reason(config.memory, c)]
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

"""What is said when nothing fits: what is missing, and what helps, the most effective first."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ultramem_megatron.config.memory import GroupPlacement, PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.config.training import Precision, Recompute
from ultramem_megatron.errors import ConfigError, PlanError
from ultramem_megatron.planning.enumerate import candidates_of, pin_reason
from ultramem_megatron.planning.memory_cost import rank_memory
from ultramem_megatron.planning.plan import Candidate, Rejection
from ultramem_megatron.planning.problem import Problem, pose
from ultramem_megatron.units import GIB

MOST_REMEDIES = 4
NOTICEABLE = 0.98
"""A change that leaves more of the need than this is not worth naming."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of a setting, and what a rank needs with it."""

    words: str
    needed_bytes: float


def dense_model_does_not_fit(problem: Problem, parts: dict[str, float]) -> str:
    """One paragraph."""
    name = problem.cluster.name
    return f'the model does not fit cluster "{name}": {_shortage(parts, problem)}. {_advice(problem, parts)}'


def nothing_fits(problem: Problem, candidates: list[Candidate]) -> str:
    """One paragraph: the smallest candidate that the pins allow, what it lacks by part, and what helps."""
    memory, usable_bytes = problem.config.memory, problem.cluster.usable_bytes
    head = f'no partition of the memory tables fits cluster "{problem.cluster.name}"'
    pinned_out = [c for c in candidates if c.rejected_by is Rejection.PIN and c.memory_bytes <= usable_bytes]
    escape = f"{pinned_out[0].label} would fit, but {pinned_out[0].reason}. " if pinned_out else ""
    allowed = [c for c in candidates if not pin_reason(memory, c)]
    too_big = [c for c in allowed if c.rejected_by is Rejection.CAPACITY]
    if not too_big:
        shapes = "; ".join(f"{c.label}: {c.reason}" for c in allowed) or "the settings exclude all of them"
        return f"{head}: {shapes}. {escape}Change {_listed(_settings(problem.config))}"
    smallest = min(too_big, key=lambda c: c.memory_bytes)
    shortage = _shortage(smallest.memory, problem)
    return f"{head}. The smallest, {smallest.label}, {shortage}. {escape}{_advice(problem, smallest.memory)}"


def _settings(config: RunConfig) -> list[str]:
    memory = config.memory
    names = ["partition", "parallel_size"]
    names += ["node_size"] if memory.partition is PartitionName.GRID else []
    names += ["placement"] if memory.placement is not GroupPlacement.AUTO else []
    names += ["value_dim"] + (["pre_value_dim"] if memory.pre_value_dim else [])
    return [f"memory.{name}" for name in names]


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _shortage(parts: dict[str, float], problem: Problem) -> str:
    total, usable_bytes = sum(parts.values()), problem.cluster.usable_bytes
    listed = ", ".join(f"{name.replace('_', ' ')} {count / GIB:.2f}" for name, count in parts.items() if count)
    return (
        f"needs {total / GIB:.2f} GiB a rank, {(total - usable_bytes) / GIB:.2f} GiB more than the "
        f"{usable_bytes / GIB:.2f} GiB usable ({listed} GiB)"
    )


def _advice(problem: Problem, parts: dict[str, float]) -> str:
    """Changes that were tried, those that fit before those that do not; else what weighs most."""
    usable_bytes, now = problem.cluster.usable_bytes, sum(parts.values())
    tried = sorted(_tried(problem), key=lambda remedy: remedy.needed_bytes)
    helpful = [remedy for remedy in tried if remedy.needed_bytes < NOTICEABLE * now][:MOST_REMEDIES]
    if not helpful:
        return _heaviest(problem, parts)
    words = [f"{r.words} ({_verdict(r.needed_bytes, usable_bytes)})" for r in helpful]
    return f"{_heaviest(problem, parts)}. Settings that were tried, most effective first: {'; '.join(words)}"


def _verdict(needed_bytes: float, usable_bytes: float) -> str:
    return f"{needed_bytes / GIB:.2f} GiB, " + ("fits" if needed_bytes <= usable_bytes else "not enough alone")


def _heaviest(problem: Problem, parts: dict[str, float]) -> str:
    """What helps against the largest group of parts."""
    groups = {"table": 0.0, "dense": 0.0, "expert": 0.0, "work": 0.0}
    for name, count in parts.items():
        kind = name.split("_")[0]
        groups[kind if kind in groups else "work"] += count
    match max(groups, key=lambda name: groups[name]):
        case "table":
            is_whole = problem.config.memory.parallel_size == "1"
            share = "a larger memory.parallel_size" if is_whole else "more ranks to share the tables"
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


def _tried(problem: Problem) -> Iterator[Remedy]:
    """Each with the smallest memory that it allows; what the run cannot be is left out."""
    cluster = problem.cluster
    for words, section, values in _changes(problem.config):
        try:
            config = replace(problem.config, **{section: replace(getattr(problem.config, section), **values)})
            yield Remedy(words, _smallest_bytes(pose(config, cluster)))
        except (ConfigError, PlanError):
            continue
    if cluster.profile.device == "cpu":
        return  # more processes would share the same memory
    for factor in (2, 4):
        more = replace(cluster, nodes=factor * cluster.nodes)
        try:
            yield Remedy(f"{more.nodes} nodes", _smallest_bytes(pose(problem.config, more)))
        except (ConfigError, PlanError):
            continue


def _changes(config: RunConfig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(in words, section, fields) of the settings that save memory without changing the model."""
    training, parallelism = config.training, config.parallelism
    stronger = list(Recompute)[list(Recompute).index(training.recompute) + 1 :]
    for recompute in stronger:
        yield f"training.recompute={recompute}", "training", {"recompute": recompute}
    half = training.micro_batch_size // 2
    if half:
        yield f"training.micro_batch_size={half}", "training", {"micro_batch_size": half}
    if training.precision is Precision.FP32:
        yield "training.precision=bf16", "training", {"precision": Precision.BF16}
    for name in ("tensor", "pipeline"):
        doubled = 2 * getattr(parallelism, name)
        yield f"parallelism.{name}={doubled}", "parallelism", {name: doubled}


def _smallest_bytes(problem: Problem) -> float:
    if not problem.config.memory.span_list:
        return rank_memory(problem.config, problem.workload, PartitionName.REPLICATED, 1).total_bytes
    memory = problem.config.memory
    allowed = [c for c in candidates_of(problem) if not pin_reason(memory, c) and c.rejected_by is not Rejection.SHAPE]
    return min((c.memory_bytes for c in allowed), default=math.inf)

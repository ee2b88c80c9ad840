"""Maps of strategy and step time over nodes, P, tokens, top-m and width: thousands of GPUs on a laptop."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import ConfigError, PlanError
from ultramem_megatron.planning.cluster import ClusterSpec, cluster_of, local_cluster
from ultramem_megatron.planning.enumerate import candidates_of
from ultramem_megatron.planning.plan import CostModel
from ultramem_megatron.planning.problem import Problem, pose
from ultramem_megatron.planning.ranking import by_bytes, rank_candidates
from ultramem_megatron.planning.step_time import dense_time


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """What is varied; an empty one stays as the config has it."""

    nodes: Sequence[int]
    parallel_sizes: Sequence[int] = ()
    tokens: Sequence[int] = ()
    """Of a rank in a micro-batch."""
    top_m: Sequence[int] = ()
    value_dim: Sequence[int] = ()

    @property
    def size(self) -> int:
        """Points of the map."""
        lengths = (len(self.nodes), *(max(1, len(axis)) for axis in self._optional))
        total = 1
        for length in lengths:
            total *= length
        return total

    @property
    def _optional(self) -> tuple[Sequence[int], ...]:
        return self.parallel_sizes, self.tokens, self.top_m, self.value_dim

    def points(self) -> Iterator[tuple[int, int | None, int | None, int | None, int | None]]:
        """(nodes, P, tokens, top-m, width), the last ones fastest; None where nothing is varied."""
        sizes, tokens, top_m, widths = (axis or (None,) for axis in self._optional)
        return itertools.product(self.nodes, sizes, tokens, top_m, widths)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One place of the map."""

    nodes: int
    ranks: int
    tokens: int
    """0 where it cannot be told, because the point cannot be."""
    top_m: int
    value_dim: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRow:
    """The best candidate of a point."""

    point: Point
    strategy: str = ""
    """Empty when nothing fits, or the point cannot be; then ``reason`` says why."""
    parallel_size: int = 0
    placement: str = ""
    step_seconds: float = 0
    exposed_seconds: float = 0
    hbm_bytes: float = 0
    strategy_by_bytes: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, int | float | str]:
        """Flat, with the point's fields first; P is ``parallel_size``."""
        own = {name: value for name, value in asdict(self).items() if name not in ("point", "parallel_size")}
        return {**asdict(self.point), "P": self.parallel_size, **own}


def check_axes(axes: Axes) -> None:
    """Refuse what cannot be varied so.

    Raises:
        PlanError: A value below 1.
    """
    named = {name: getattr(axes, name) for name in ("nodes", "parallel_sizes", "tokens", "top_m", "value_dim")}
    for name, values in named.items():
        for value in values:
            if value < 1:
                option = name.replace("_", "-")
                raise PlanError(f"--{option} holds {value}; every value must be at least 1, as in --{option} 8,16")


def sweep(config: RunConfig, cluster: ClusterSpec, axes: Axes) -> Iterator[SweepRow]:
    """One row a point. The tokens of an optimizer step stay as near to the config's as the ranks allow.

    Args:
        config: The run; its pins hold.
        cluster: Its profile, and the ranks of a node.
        axes: What is varied.
    """
    for nodes, size, tokens, top_m, value_dim in axes.points():
        machines = _machines(cluster, nodes)
        memory = replace(
            config.memory,
            parallel_size=config.memory.parallel_size if size is None else str(size),
            top_m=top_m or config.memory.top_m,
            value_dim=value_dim or config.memory.value_dim,
        )
        point = Point(
            nodes=nodes,
            ranks=machines.num_ranks,
            tokens=tokens or 0,
            top_m=memory.top_m,
            value_dim=memory.value_dim,
        )
        try:
            problem = _problem(replace(config, memory=memory), machines, tokens)
            yield _row(replace(point, tokens=problem.workload.lookup.tokens), problem)
        except (ConfigError, PlanError) as error:  # this point cannot be, others can
            yield SweepRow(point=point, reason=str(error))


def _machines(cluster: ClusterSpec, nodes: int) -> ClusterSpec:
    if cluster.profile.device == "cpu":
        return local_cluster(nodes, cluster.profile)
    return cluster_of(cluster.profile, nodes, cluster.gpus_per_node)


def _problem(config: RunConfig, cluster: ClusterSpec, tokens: int | None) -> Problem:
    training, parallelism = config.training, config.parallelism
    data_ranks = max(1, cluster.num_ranks // (parallelism.tensor * parallelism.pipeline))
    samples = training.micro_batch_size * data_ranks
    batch = max(1, round(training.global_batch_size / samples)) * samples
    problem = pose(replace(config, training=replace(training, global_batch_size=batch)), cluster)
    if tokens is None:
        return problem
    lookup = problem.workload.lookup
    scaled = problem.with_tokens(tokens / lookup.tokens)
    step_tokens = training.global_batch_size * config.model.seq_length
    micro_batches = max(1, round(step_tokens / (tokens * parallelism.tensor * data_ranks)))
    workload = replace(scaled.workload, micro_batches=micro_batches)
    return replace(scaled, workload=workload, dense=dense_time(config, workload, cluster.profile))


def _row(point: Point, problem: Problem) -> SweepRow:
    candidates = candidates_of(problem)
    best = rank_candidates(candidates, CostModel.TIME)[0][0]
    if not best.feasible:
        return SweepRow(point=point, reason=f"nothing fits; {best.label}: {best.reason}")
    return SweepRow(
        point=point,
        strategy=str(best.partition),
        parallel_size=best.parallel_size,
        placement=str(best.placement),
        step_seconds=best.step_seconds,
        exposed_seconds=best.exposed_seconds,
        hbm_bytes=best.memory_bytes,
        strategy_by_bytes=str(min(candidates, key=by_bytes).partition),
    )

"""``Problem``: what a plan is made for, with everything that all candidates have in common calculated once."""

from dataclasses import dataclass, replace

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.profile import LevelCurves
from ultramem_megatron.planning.step_time import DenseTime, dense_time
from ultramem_megatron.planning.workload import Workload, workload_of


@dataclass(frozen=True, slots=True)
class Problem:
    """A run on a cluster."""

    config: RunConfig
    cluster: ClusterSpec
    workload: Workload
    dense: DenseTime

    @property
    def overlap_fraction(self) -> float:
        """Share of the dense work of a span beside which its lookup can hide."""
        return self.cluster.profile.overlap_fraction if self.config.memory.overlap else 0.0

    def with_tokens(self, factor: float) -> "Problem":
        """The same with so many times the tokens in each micro-batch, and as many micro-batches."""
        workload, lookup = self.workload, self.workload.lookup
        tokens = max(1, round(lookup.tokens * factor))
        scaled = replace(
            workload,
            lookup=replace(lookup, tokens=tokens),
            micro_batch_tokens=tokens * self.config.parallelism.tensor,
        )
        return Problem(self.config, self.cluster, scaled, dense_time(self.config, scaled, self.cluster.profile))

    def with_network(self, factor: float) -> "Problem":
        """The same with so many times the network cards in each node."""
        profile = self.cluster.profile
        faster = profile.model_copy(update={"network": _scaled(profile.network, factor)})
        return replace(self, cluster=replace(self.cluster, profile=faster))


def pose(config: RunConfig, cluster: ClusterSpec, zipf_exponent: float = 0.0) -> Problem:
    """The problem of planning ``config`` for ``cluster``.

    Raises:
        ConfigError: The degrees or the batch do not fit the cluster's ranks.
    """
    workload = workload_of(config, cluster.num_ranks, zipf_exponent)
    return Problem(config, cluster, workload, dense_time(config, workload, cluster.profile))


def _scaled(level: LevelCurves, factor: float) -> LevelCurves:
    """The same latencies, so many times the bandwidth."""
    faster = {}
    for name in LevelCurves.model_fields:
        curves = getattr(level, name)
        scaled = []
        for curve in curves.curves:
            latency = curve.latency_seconds
            knots = tuple((size, latency + (seconds - latency) / factor) for size, seconds in curve.knots)
            update = {"bytes_per_second": factor * curve.bytes_per_second, "knots": knots}
            scaled.append(curve.model_copy(update=update))
        faster[name] = curves.model_copy(update={"curves": tuple(scaled)})
    return LevelCurves(**faster)

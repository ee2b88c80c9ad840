"""Who predicts: the planner's time model, and the four rules of thumb that it has to beat."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning.comm_cost import number_wise_bytes, partition_bytes
from ultramem_megatron.planning.fingerprint import flat_differences
from ultramem_megatron.planning.lookup_time import lookup_time
from ultramem_megatron.planning.placement import GroupShape
from ultramem_megatron.planning.profile import ClusterProfile
from ultramem_megatron.planning.validation.results import BenchResults, Measurement


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of the forward and the backward pass together."""

    cost: float
    low: float = math.nan
    high: float = math.nan
    """Ends of the interval; NaN where none is claimed."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """A cost model, or a rule."""

    name: str
    predict: Callable[[Measurement], Prediction]
    """For strategy and shape of a measurement; its times are not looked at."""

    is_time: bool = False
    """Whether costs are seconds; of others only the order is judged."""

    is_cost: bool = True
    """Whether costs of different shapes can be compared; a rule that always takes the same strategy has none."""


def predictors(profiles: Sequence[ClusterProfile]) -> tuple[Predictor, ...]:
    """The planner's model first, then the baselines.

    Args:
        profiles: As for ``profile_for``.
    """

    def model(one: Measurement) -> Prediction:
        return model_prediction(one, profile_for(one.shape.ranks, profiles))

    return (
        Predictor("time model", model, is_time=True),
        Predictor("bytes", bytes_prediction),
        Predictor("TorchRec-style constants", constants_prediction),
        always(PartitionName.NUMBER_WISE),
        always(PartitionName.DIMENSION_WISE),
    )


def profile_for(ranks: int, profiles: Sequence[ClusterProfile]) -> ClusterProfile:
    """The one that a lookup over ``ranks`` is predicted with: the first with as many ranks a node, else the first."""
    return next((one for one in profiles if one.ranks_per_node == ranks), profiles[0])


def circumstances(results: BenchResults, profiles: Sequence[ClusterProfile]) -> list[str]:
    """Where lookups were measured on another machine, or with other versions, than the profile that predicts them."""
    found = []
    for here in results.fingerprints:
        profile = profile_for(here.processes, profiles)
        differences = flat_differences(profile.fit.fingerprint, here.flat()) if profile.fit else []
        if differences:
            found.append(
                f"Profile {profile.name} was measured in other circumstances than the lookups over {here.processes} "
                f"ranks ({'; '.join(differences)}), so what is off may be either; measure both on one machine."
            )
    return found


def model_prediction(one: Measurement, profile: ClusterProfile) -> Prediction:
    """What ``ultramem plan`` would say of a lookup that nothing hides."""
    shape = one.shape
    # hosts hold equal shares of consecutive ranks
    group = GroupShape(shape.ranks, math.gcd(shape.ranks, profile.ranks_per_node))
    time = lookup_time(profile, one.partition, shape.lookup, group, one.node_size or 1)
    seconds, half = time.forward_seconds + time.backward_seconds, time.uncertainty_seconds(profile)
    return Prediction(seconds, seconds - half, seconds + half)


def bytes_prediction(one: Measurement) -> Prediction:
    """Payload of both passes, all rows equally likely: the paper's way of choosing, to the byte."""
    wire = partition_bytes(one.partition, one.shape.lookup, one.shape.ranks, one.node_size or 1)
    return Prediction(wire.forward_bytes + wire.backward_bytes)


# The defaults of TorchRec's planner (torchrec/distributed/planner/constants.py, October 2025): one link rate whatever
# the collective and the size, no latency, uniform rows, no repeats; the memory of a V100.
LINK_BYTES_PER_SECOND = 600 * 2**30
MEMORY_BYTES_PER_SECOND = 897 * 2**30
BACKWARD_PER_FORWARD = 2
"""Reads of the table's rows: a backward pass reads and writes them."""


def constants_prediction(one: Measurement) -> Prediction:
    """Bytes over one rate for the links and one for the memory, as TorchRec's planner has it.

    A row-wise table sends a row for each pick; a column-wise one reads the picks of all ranks, a slice of each.
    """
    shape = one.shape.lookup
    picks = shape.tokens * shape.picks
    wire = partition_bytes(one.partition, shape, one.shape.ranks, one.node_size or 1)
    if one.partition is PartitionName.NUMBER_WISE:
        elsewhere = picks * (one.shape.ranks - 1) / one.shape.ranks
        wire = number_wise_bytes(shape, one.shape.ranks, elsewhere)
    read_bytes = picks * shape.value_dim * shape.element_bytes
    links = (wire.forward_bytes + wire.backward_bytes) / LINK_BYTES_PER_SECOND
    return Prediction(links + (1 + BACKWARD_PER_FORWARD) * read_bytes / MEMORY_BYTES_PER_SECOND)


def always(partition: PartitionName) -> Predictor:
    """A rule that looks at nothing; where its strategy is impossible the first of the others is taken."""
    cost = {True: 0.0, False: 1.0}
    return Predictor(f"always {partition}", lambda one: Prediction(cost[one.partition is partition]), is_cost=False)

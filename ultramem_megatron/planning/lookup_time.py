"""Seconds of one lookup of one rank, by pass and phase, when nothing hides it: collectives and reading of rows.

The bytes are those of ``comm_cost.py``; the machine is a ``ClusterProfile``. Letters as there.
"""

from dataclasses import dataclass, replace

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning.comm_cost import PRE_VALUES, LookupShape, partition_bytes
from ultramem_megatron.planning.kernel_time import kernel_parts
from ultramem_megatron.planning.link_time import collective_seconds
from ultramem_megatron.planning.placement import GroupShape
from ultramem_megatron.planning.profile import ClusterProfile, Collective
from ultramem_megatron.planning.skew import busiest_owner_factor, expected_distinct, top_row_fraction
from ultramem_megatron.planning.time_part import Part, Pass, Phase

_DISPATCHED = frozenset(
    {"split_sizes", "row_numbers", "blocks", "scores", "vectors", "score_gradients", "vector_gradients"}
)
"""What travels in the phase ``dispatch``; the rest travels in ``combine``."""

_GATHERED = frozenset({"row_numbers", "blocks", "scores", "product_gradients"})
"""Dimension-wise: from everyone to everyone ..."""
_REDUCED = frozenset({"products", "score_gradients"})
"""... and summed over everyone. All other messages are all-to-all, as all of the other partitions are."""

_INSIDE, _ACROSS = "inside_", "across_"
"""A grid's messages inside its nodes, which are those of dimension-wise, and between them, those of number-wise."""


@dataclass(frozen=True, slots=True)
class LookupTime:
    """Where the time of one memory layer goes in one micro-batch."""

    parts: tuple[Part, ...]

    def seconds(self, which: Pass, phase: Phase | None = None) -> float:
        """Of a pass, or of one of its phases."""
        return sum(part.seconds for part in self.parts if part.which is which and phase in (None, part.phase))

    @property
    def forward_seconds(self) -> float:
        """Of the forward pass."""
        return self.seconds(Pass.FORWARD)

    @property
    def backward_seconds(self) -> float:
        """Of the backward pass."""
        return self.seconds(Pass.BACKWARD)

    @property
    def phases(self) -> dict[str, float]:
        """``forward.dispatch`` and so on -> seconds."""
        return {f"{which}.{phase}": self.seconds(which, phase) for which in Pass for phase in Phase}

    def uncertainty_seconds(self, profile: ClusterProfile) -> float:
        """Half width of the interval: the parts' own, added up, because one wrong number is wrong everywhere."""
        return sum(part.seconds * profile.uncertainty_fraction(part.path) for part in self.parts)


def lookup_time(
    profile: ClusterProfile, partition: PartitionName, shape: LookupShape, group: GroupShape, node_size: int = 1
) -> LookupTime:
    """A memory layer in one micro-batch: its lookup and, with pre-values, their inner products.

    Args:
        profile: The machine.
        partition: How the table is split.
        shape: The lookup.
        group: The ranks that share it.
        node_size: L; matters to a grid alone.
    """
    # processes of a machine share its cores and memory: what the busiest has more, the others leave to it
    factor = 1.0 if profile.device == "cpu" else owner_factor(partition, shape, group.ranks, node_size)
    kernels = kernel_parts(profile, partition, replace(shape, pre_value_dim=0), group.ranks, node_size, factor)
    if shape.pre_value_dim:
        products = replace(shape, value_dim=shape.pre_value_dim, pre_value_dim=0, expansion=1, cores=1)
        kernels += kernel_parts(profile, partition, products, group.ranks, node_size, factor)
    return LookupTime((*message_parts(profile, partition, shape, group, node_size, factor), *kernels))


def owner_factor(partition: PartitionName, shape: LookupShape, ranks: int, node_size: int = 1) -> float:
    """Load of the busiest owner over the mean; 1 where columns are split, and all are equally busy."""
    picks = shape.tokens * shape.picks
    match partition:
        case PartitionName.NUMBER_WISE:
            # each rank asks for the most popular row once, like for any other
            rows = expected_distinct(picks, shape.num_rows, shape.zipf_exponent)
            return busiest_owner_factor(rows, ranks, 1 / rows)
        case PartitionName.NUMBER_WISE_POOLED:
            top = top_row_fraction(shape.num_rows, shape.zipf_exponent, shape.picks)
            return busiest_owner_factor(picks, ranks, top)
        case PartitionName.GRID:
            rows = expected_distinct(picks * node_size, shape.num_rows, shape.zipf_exponent)
            return busiest_owner_factor(rows, ranks // node_size, 1 / rows)
        case _:
            return 1.0


def message_parts(
    profile: ClusterProfile,
    partition: PartitionName,
    shape: LookupShape,
    group: GroupShape,
    node_size: int,
    factor: float,
) -> tuple[Part, ...]:
    """The collectives, one part each."""
    wire = partition_bytes(partition, shape, group.ranks, node_size)
    parts = []
    for which, messages in ((Pass.FORWARD, wire.forward), (Pass.BACKWARD, wire.backward)):
        for name, num_bytes in messages.items():
            collective, members, load = _carrier(partition, name, group, node_size, factor)
            level, seconds = collective_seconds(profile, collective, load * num_bytes, members)
            if seconds:
                parts.append(Part(which, _phase(name), f"{level}.{collective}", seconds, name))
    return tuple(parts)


def _phase(name: str) -> Phase:
    return Phase.DISPATCH if _plain(name) in _DISPATCHED else Phase.COMBINE


def _plain(name: str) -> str:
    """A message's name without its prefixes."""
    for prefix in (_INSIDE, _ACROSS, PRE_VALUES):
        name = name.removeprefix(prefix)
    return name


def _carrier(
    partition: PartitionName, name: str, group: GroupShape, node_size: int, factor: float
) -> tuple[Collective, GroupShape, float]:
    """Which collective takes a message, among whom, and how much more the busiest rank has of it than the mean."""
    by_columns = partition is PartitionName.DIMENSION_WISE or name.startswith(_INSIDE)
    if partition is PartitionName.GRID:
        nodes = group.ranks // node_size
        together = max(1, group.node_ranks // node_size)
        members = GroupShape(node_size, min(node_size, group.node_ranks)) if by_columns else GroupShape(nodes, together)
    else:
        members = group
    if not by_columns:
        return Collective.ALL_TO_ALL, members, factor
    plain = _plain(name)
    if plain in _GATHERED:
        return Collective.ALL_GATHER, members, 1.0
    return (Collective.REDUCE_SCATTER if plain in _REDUCED else Collective.ALL_TO_ALL), members, 1.0

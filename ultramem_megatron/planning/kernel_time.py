"""Seconds of the local work of one lookup: rows read and added to at random, sums over picks, the sort by owner.

Memory-bound throughout: bytes over the memory's rate, times what rows of that width reach of it. The passes counted are
those of ``parallel/partition``, which keeps picked rows in fp32.
"""

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning.comm_cost import FP32_BYTES, LookupShape
from ultramem_megatron.planning.profile import ClusterProfile
from ultramem_megatron.planning.skew import expected_distinct
from ultramem_megatron.planning.time_part import Part, Pass, Phase

# Letters: T tokens, K picks, P ranks, L ranks of a node, U distinct rows, Dv width of a row.

POOL_FORWARD_PASSES = 2
"""Over the picked rows in fp32: written by the reading, read by the sum."""
POOL_BACKWARD_PASSES = 3
"""Read for the gradient of the scores; the rows' gradients written, and read when they are added."""
WEIGH_PASSES = 4
"""At the owners, of rows by their scores: written when read, read and written when weighed, read when added. Backward
as much for the scores' gradient, and as much for the rows'."""
SORT_BYTES_PER_PICK = 128
"""A radix sort of a number and its place: 4 passes that read and write 12 bytes, then places and counts."""
LAUNCHES = 10
"""Small kernels of one phase: masks, indices, casts."""


def gather_part(profile: ClusterProfile, which: Pass, phase: Phase, rows: float, row_bytes: float) -> Part:
    """Read so many rows at random."""
    rate = profile.memory_bytes_per_second * profile.gather.fraction(row_bytes)
    return Part(which, phase, "gather", rows * row_bytes / rate, "read_rows")


def scatter_part(profile: ClusterProfile, which: Pass, phase: Phase, rows: float, row_bytes: float) -> Part:
    """Add to so many rows at random."""
    rate = profile.memory_bytes_per_second * profile.scatter.fraction(row_bytes)
    return Part(which, phase, "scatter", rows * row_bytes / rate, "add_rows")


def stream_part(profile: ClusterProfile, which: Pass, phase: Phase, num_bytes: float, name: str) -> Part:
    """Read or write so many bytes one after the other."""
    return Part(which, phase, "memory_bytes_per_second", num_bytes / profile.memory_bytes_per_second, name)


def launch_part(profile: ClusterProfile, which: Pass, phase: Phase) -> Part:
    """What a phase's kernels take when they do nothing."""
    return Part(which, phase, "launch_seconds", LAUNCHES * profile.launch_seconds, "launches")


def kernel_parts(
    profile: ClusterProfile,
    partition: PartitionName,
    shape: LookupShape,
    ranks: int,
    node_size: int,
    factor: float,
) -> tuple[Part, ...]:
    """All local work of one lookup.

    Args:
        profile: The machine.
        partition: How the table is split.
        shape: The lookup, pre-values left out.
        ranks: P.
        node_size: L; matters to a grid alone.
        factor: Load of the busiest owner of rows over the mean.
    """
    launches = [launch_part(profile, which, phase) for which in Pass for phase in Phase if phase is not Phase.SYNC]
    match partition:
        case PartitionName.REPLICATED:
            # the phase lookup is the only one
            return (*launches[1::3], *_by_columns(profile, shape, 1))
        case PartitionName.DIMENSION_WISE:
            return (*launches, *_by_columns(profile, shape, ranks))
        case PartitionName.NUMBER_WISE:
            return (*launches, *_by_rows(profile, shape, 1, factor))
        case PartitionName.GRID:
            return (*launches, *_by_rows(profile, shape, node_size, factor))
        case PartitionName.NUMBER_WISE_POOLED:
            return (*launches, *_pooled_by_owners(profile, shape, factor))
        case PartitionName.AUTO:
            raise AssertionError("a plan names a partition; auto is for the config")


def _by_columns(profile: ClusterProfile, shape: LookupShape, ranks: int) -> list[Part]:
    """The picks of all P ranks, a P-th of the columns each."""
    picks = ranks * shape.tokens * shape.picks
    width = shape.value_dim / ranks
    return [
        gather_part(profile, Pass.FORWARD, Phase.LOOKUP, picks, width * shape.element_bytes),
        _pool(profile, Pass.FORWARD, Phase.LOOKUP, shape),
        _pool(profile, Pass.BACKWARD, Phase.LOOKUP, shape),
        scatter_part(profile, Pass.BACKWARD, Phase.LOOKUP, picks, width * FP32_BYTES),
    ]


def _by_rows(profile: ClusterProfile, shape: LookupShape, node_size: int, factor: float) -> list[Part]:
    """Owners read what is asked of them; at home the rows that came are read again, pick by pick, and summed.

    With ``node_size`` ranks a node each has the picks of all of them, in an L-th of the columns.
    """
    picks = node_size * shape.tokens * shape.picks
    rows = factor * expected_distinct(picks, shape.num_rows, shape.zipf_exponent)
    row_bytes, sum_bytes = (b * shape.value_dim / node_size for b in (shape.element_bytes, FP32_BYTES))
    return [
        stream_part(profile, Pass.FORWARD, Phase.DISPATCH, SORT_BYTES_PER_PICK * picks, "sort_picks"),
        gather_part(profile, Pass.FORWARD, Phase.LOOKUP, rows, row_bytes),
        gather_part(profile, Pass.FORWARD, Phase.COMBINE, picks, row_bytes),
        _pool(profile, Pass.FORWARD, Phase.COMBINE, shape),
        _pool(profile, Pass.BACKWARD, Phase.COMBINE, shape),
        scatter_part(profile, Pass.BACKWARD, Phase.COMBINE, picks, sum_bytes),
        scatter_part(profile, Pass.BACKWARD, Phase.LOOKUP, rows, sum_bytes),
    ]


def _pooled_by_owners(profile: ClusterProfile, shape: LookupShape, factor: float) -> list[Part]:
    """Owners read the picks of others, weigh them and add them to the sums of their groups; in the backward pass they
    read them again, and for each the gradient of its group."""
    picks, busiest = shape.tokens * shape.picks, factor * shape.tokens * shape.picks
    row_bytes, sum_bytes = (b * shape.value_dim for b in (shape.element_bytes, FP32_BYTES))
    return [
        stream_part(profile, Pass.FORWARD, Phase.DISPATCH, SORT_BYTES_PER_PICK * picks, "sort_picks"),
        gather_part(profile, Pass.FORWARD, Phase.LOOKUP, busiest, row_bytes),
        stream_part(profile, Pass.FORWARD, Phase.LOOKUP, WEIGH_PASSES * sum_bytes * busiest, "weigh_picks"),
        scatter_part(profile, Pass.FORWARD, Phase.LOOKUP, busiest, sum_bytes),
        gather_part(profile, Pass.BACKWARD, Phase.LOOKUP, busiest, row_bytes),
        gather_part(profile, Pass.BACKWARD, Phase.LOOKUP, busiest, sum_bytes),
        stream_part(profile, Pass.BACKWARD, Phase.LOOKUP, 2 * WEIGH_PASSES * sum_bytes * busiest, "weigh_picks"),
        scatter_part(profile, Pass.BACKWARD, Phase.LOOKUP, busiest, sum_bytes),
    ]


def _pool(profile: ClusterProfile, which: Pass, phase: Phase, shape: LookupShape) -> Part:
    """The weighted sum over picks."""
    passes = POOL_FORWARD_PASSES if which is Pass.FORWARD else POOL_BACKWARD_PASSES
    elements = shape.tokens * shape.picks * shape.value_dim
    return stream_part(profile, which, phase, passes * FP32_BYTES * elements, "sum_picks")

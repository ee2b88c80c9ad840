"""Seconds of the local work of one lookup: rows read and added to at random, sums over picks, the sort by owner.

Memory-bound throughout: bytes over the memory's rate, times what rows of that width reach of it. Rows are read and
summed in one pass, and read again in the backward pass, as in ``parallel/partition``.
"""

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning.comm_cost import FP32_BYTES, LookupShape
from ultramem_megatron.planning.profile import ClusterProfile
from ultramem_megatron.planning.skew import expected_distinct
from ultramem_megatron.planning.time_part import Part, Pass, Phase

# Letters: T tokens, K picks, P ranks, L ranks of a node, U distinct rows, Dv width of a row.

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


def new_memory_parts(profile: ClusterProfile, which: Pass, phase: Phase, num_bytes: float) -> list[Part]:
    """What a result of ``num_bytes`` costs beside its writing, where the system has to give its memory."""
    seconds = profile.new_memory.seconds(num_bytes) if profile.new_memory else 0.0
    return [Part(which, phase, "new_memory", seconds, "touch_pages")] if seconds else []


def stream_part(profile: ClusterProfile, which: Pass, phase: Phase, num_bytes: float, name: str) -> Part:
    """Read or write so many bytes one after the other."""
    return Part(which, phase, "memory_bytes_per_second", num_bytes / profile.memory_bytes_per_second, name)


def sort_part(profile: ClusterProfile, picks: float) -> Part:
    """Picks in the order of their rows' owners, before they are sent."""
    if profile.sort_items_per_second is None:
        return stream_part(profile, Pass.FORWARD, Phase.DISPATCH, SORT_BYTES_PER_PICK * picks, "sort_picks")
    seconds = picks / profile.sort_items_per_second
    return Part(Pass.FORWARD, Phase.DISPATCH, "sort_items_per_second", seconds, "sort_picks")


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
            return (*launches, *_pooled_by_owners(profile, shape, ranks, factor))
        case PartitionName.AUTO:
            raise AssertionError("a plan names a partition; auto is for the config")


def _by_columns(profile: ClusterProfile, shape: LookupShape, ranks: int) -> list[Part]:
    """The picks of all P ranks, a P-th of the columns each."""
    picks = ranks * shape.tokens * shape.picks
    return _pool(profile, Phase.LOOKUP, shape, picks, shape.value_dim / ranks)


def _by_rows(profile: ClusterProfile, shape: LookupShape, node_size: int, factor: float) -> list[Part]:
    """Owners read what is asked of them; at home the rows that came are read again, pick by pick, and summed.

    With ``node_size`` ranks a node each has the picks of all of them, in an L-th of the columns.
    """
    picks = node_size * shape.tokens * shape.picks
    rows = factor * expected_distinct(picks, shape.num_rows, shape.zipf_exponent)
    width = shape.value_dim / node_size
    row_bytes, gradient_bytes = width * shape.element_bytes, width * FP32_BYTES
    # the rows that came have no gradient buffer of the optimizer's: one is made and, when full, sent in their own type
    casts = row_bytes + gradient_bytes if shape.element_bytes != FP32_BYTES else 0
    return [
        sort_part(profile, picks),
        gather_part(profile, Pass.FORWARD, Phase.LOOKUP, rows, row_bytes),
        *new_memory_parts(profile, Pass.FORWARD, Phase.LOOKUP, rows * row_bytes),
        *_pool(profile, Phase.COMBINE, shape, picks, width),
        stream_part(profile, Pass.BACKWARD, Phase.COMBINE, rows * (gradient_bytes + casts), "make_row_gradients"),
        *new_memory_parts(profile, Pass.BACKWARD, Phase.COMBINE, rows * gradient_bytes),
        scatter_part(profile, Pass.BACKWARD, Phase.LOOKUP, rows, gradient_bytes),
    ]


def _pooled_by_owners(profile: ClusterProfile, shape: LookupShape, ranks: int, factor: float) -> list[Part]:
    """Owners sum the rows that others pick; at home their sums are added up, and backward each gets its gradient."""
    picks = shape.tokens * shape.picks
    sums = shape.tokens * expected_distinct(shape.picks, ranks * shape.expansion)
    sum_bytes, added_bytes = shape.value_dim * shape.element_bytes, shape.value_dim * FP32_BYTES
    return [
        sort_part(profile, picks),
        *_pool(profile, Phase.LOOKUP, shape, factor * picks, shape.value_dim),
        *new_memory_parts(profile, Pass.FORWARD, Phase.LOOKUP, factor * sums * sum_bytes),
        scatter_part(profile, Pass.FORWARD, Phase.COMBINE, sums, added_bytes),
        gather_part(profile, Pass.BACKWARD, Phase.COMBINE, sums, added_bytes),
        *new_memory_parts(profile, Pass.BACKWARD, Phase.COMBINE, sums * added_bytes),
    ]


def _pool(profile: ClusterProfile, phase: Phase, shape: LookupShape, rows: float, width: float) -> list[Part]:
    """Rows of ``width`` read and summed by token; backward read again, and given their gradients."""
    row_bytes, rate = width * shape.element_bytes, profile.memory_bytes_per_second
    if profile.pool_forward is None or profile.pool_backward is None:
        return [
            gather_part(profile, Pass.FORWARD, phase, rows, row_bytes),
            gather_part(profile, Pass.BACKWARD, phase, rows, row_bytes),
            scatter_part(profile, Pass.BACKWARD, phase, rows, width * FP32_BYTES),
        ]
    return [
        Part(which, phase, name, rows * row_bytes / rate / curve.fraction(row_bytes), "sum_picks")
        for which, name, curve in (
            (Pass.FORWARD, "pool_forward", profile.pool_forward),
            (Pass.BACKWARD, "pool_backward", profile.pool_backward),
        )
    ]

"""What ``ultramem calibrate`` times, in which order: sizes of messages, of groups, of rows and of products."""

from collections.abc import Sequence
from dataclasses import dataclass

from ultramem_megatron.planning.profile import Collective
from ultramem_megatron.units import KIB, MIB

FIT_EVERY = 2
"""Of the sizes each second one is fitted, and the largest, beyond which a curve is only guessed; the others tell the
error of the fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Sizes and counts of one calibration."""

    message_bytes: tuple[int, ...]
    """Bytes that a rank sends to the other ranks of its group."""

    alone_bytes: tuple[int, ...]
    """Of these, what one group also sends while the others wait: to tell what sharing the wires costs."""

    row_bytes: tuple[int, ...]
    """Widths of rows that are read at random, added to, and summed by token."""

    product_sides: tuple[int, ...]
    """Sides of square matrices that are multiplied."""

    table_bytes: int
    """Of the table whose rows are read: beyond the caches."""

    batch_bytes: int
    """Read from it at a time; of narrow rows no more than ``MOST_ROWS``."""

    new_bytes: tuple[int, ...]
    """Of results that are written to new memory, and to memory in use; none where an allocator keeps its memory."""

    repeats: int
    warmups: int

    stretch_seconds: float
    """What is shorter is done several times in a row and timed as one. Processes that share cores take turns of some
    milliseconds: timed alone, something shorter would have a core to itself, and seem twice as fast as in a lookup."""

    seconds_each: float
    """After which a measurement is cut short, with no fewer than ``MIN_REPEATS``."""


MIN_REPEATS = 5
MOST_ROWS = 2**15


def make_schedule(*, on_gpu: bool, quick: bool) -> Schedule:
    """The full one takes up to five minutes, the quick one some seconds on few ranks and is good for a trial only."""
    largest = (512 if on_gpu else 64) * MIB
    sizes = _doubling(256 if quick else KIB, 64 * KIB if quick else largest, 4 if quick else 2)
    return Schedule(
        message_bytes=sizes,
        alone_bytes=sizes[len(sizes) // 2 :: 4],
        row_bytes=(64, 256, 1024) if quick else (16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
        product_sides=(128,) if quick else ((4096, 8192) if on_gpu else (256, 512)),
        table_bytes=(2 * 1024 if on_gpu else 2 if quick else 32) * MIB,
        batch_bytes=(256 if on_gpu else 1 if quick else 8) * MIB,
        # glibc asks the system for each block of 32 MiB and more, and gives it back when it is freed
        new_bytes=() if on_gpu else tuple(size * MIB for size in ((31, 33) if quick else (8, 31, 33, 48, 64))),
        repeats=MIN_REPEATS if quick else 20,
        warmups=5 if on_gpu else 2,
        stretch_seconds=0.002 if on_gpu or quick else 0.02,
        seconds_each=0.2 if quick else 1.0,
    )


def group_sizes(ranks_per_node: int, nodes: int) -> list[int]:
    """Groups that a plan may use: parts of a node, whole nodes, and whole numbers of nodes that divide them all."""
    inside = [ranks for ranks in range(2, ranks_per_node + 1) if ranks_per_node % ranks == 0]
    across = [ranks_per_node * count for count in range(2, nodes + 1) if nodes % count == 0]
    return inside + across


def is_held_out(sizes: Sequence[int], num_bytes: int) -> bool:
    """Whether a size is kept from the fit."""
    index = sizes.index(num_bytes)
    return index % FIT_EVERY == 1 and index < len(sizes) - 1


def network_bytes(collective: Collective, sent: float, ranks: int, per_node: int) -> float:
    """Of what a rank sends to its group, what its share of the network carries, as ``CollectiveCurves`` counts it."""
    if collective is Collective.ALL_TO_ALL:
        return sent * (ranks - per_node) / (ranks - 1)
    return sent / per_node


def _doubling(first: int, last: int, factor: int) -> tuple[int, ...]:
    sizes = [first]
    while sizes[-1] * factor <= last:
        sizes.append(sizes[-1] * factor)
    return tuple(sizes)

"""Collectives over groups of the world, alone or all groups at once, as training uses the wires."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from ultramem_megatron.measuring.clock import Clock
from ultramem_megatron.measuring.repeat import Measured, measure_in_turns
from ultramem_megatron.planning.calibration.schedule import Schedule
from ultramem_megatron.planning.profile import Collective

ELEMENT_BYTES = 4


def own_subgroup(ranks: int) -> dist.ProcessGroup:
    """This rank's group when the world is cut into consecutive groups of ``ranks``. Collective over the world."""
    if ranks == dist.get_world_size():
        assert dist.group.WORLD is not None
        return dist.group.WORLD
    groups = [list(range(first, first + ranks)) for first in range(0, dist.get_world_size(), ranks)]
    own, _ = dist.new_subgroups_by_enumeration(groups)
    assert own is not None
    return own


def share_elements(collective: Collective, num_bytes: int, ranks: int) -> int:
    """Elements of a rank's share (all-reduce: of the whole) so that it sends about ``num_bytes`` to other ranks."""
    elements = num_bytes / ELEMENT_BYTES / (ranks - 1)
    if collective is Collective.ALL_REDUCE:
        elements *= ranks / 2
    return max(1, round(elements))


def sent_bytes(collective: Collective, elements: int, ranks: int) -> float:
    """What a rank sends to the others; the inverse of ``share_elements``."""
    factor = 2 / ranks if collective is Collective.ALL_REDUCE else 1
    return elements * (ranks - 1) * factor * ELEMENT_BYTES


def measure_collectives(
    num_bytes: int, group: dist.ProcessGroup, clock: Clock, schedule: Schedule, *, alone: bool
) -> dict[Collective, Measured]:
    """Each collective over ``group`` and, unless ``alone``, over all groups like it at once. Collective over the world.

    Args:
        num_bytes: What a rank sends to the others of its group.
        group: Of this rank.
        clock: Of its device.
        schedule: Repeats.
        alone: Only the group of rank 0 works.
    """
    idle = alone and dist.get_global_rank(group, 0) != 0
    works = {str(one): _nothing if idle else _work(one, num_bytes, group, clock.device) for one in Collective}
    # small ones are timed several in a row, as nccl-tests do: the first after a barrier finds all ranks awake
    found = measure_in_turns(works, clock, schedule)
    return {one: found[str(one)] for one in Collective}


def _nothing() -> None:
    """What the ranks of idle groups do."""


def _work(
    collective: Collective, num_bytes: int, group: dist.ProcessGroup, device: torch.device
) -> Callable[[], object]:
    ranks = group.size()
    share = torch.zeros(share_elements(collective, num_bytes, ranks), device=device)
    if collective is Collective.ALL_REDUCE:
        return lambda: dist.all_reduce(share, group=group)
    whole = share.repeat(ranks)
    # received into memory that is new, as in a lookup: on CPUs its first touch is part of the price
    match collective:
        case Collective.ALL_GATHER:
            return lambda: dist.all_gather_into_tensor(torch.empty_like(whole), share, group=group)
        case Collective.REDUCE_SCATTER:
            return lambda: dist.reduce_scatter_tensor(torch.empty_like(share), whole, group=group)
        case Collective.ALL_TO_ALL:
            return lambda: dist.all_to_all_single(torch.empty_like(whole), whole, group=group)

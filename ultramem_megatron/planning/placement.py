"""Where the ranks of a group lie: how many of them share a node. Integers only; the lists are in ``rank_grid.py``."""

import math
from dataclasses import dataclass

from ultramem_megatron.config.memory import GroupPlacement


@dataclass(frozen=True, slots=True)
class GroupShape:
    """A group that has the same number of ranks on each of its nodes."""

    ranks: int
    node_ranks: int
    """Of them on one node."""

    @property
    def nodes(self) -> int:
        """Nodes that it reaches over."""
        return self.ranks // self.node_ranks


def mem_shape(placement: GroupPlacement, ranks: int, stage_ranks: int, gpus_per_node: int) -> GroupShape:
    """The ranks that hold one copy of a table.

    Args:
        placement: Which, not ``auto``.
        ranks: P.
        stage_ranks: Ranks of the pipeline stage, a multiple of P.
        gpus_per_node: Ranks of a node.
    """
    copies = stage_ranks // ranks
    return (
        _blocks(ranks, gpus_per_node) if placement is GroupPlacement.PACKED else _strides(ranks, copies, gpus_per_node)
    )


def mem_dp_shape(placement: GroupPlacement, ranks: int, stage_ranks: int, gpus_per_node: int) -> GroupShape:
    """The ranks that hold the same shard; the arguments are those of ``mem_shape``."""
    copies = stage_ranks // ranks
    return (
        _strides(copies, ranks, gpus_per_node) if placement is GroupPlacement.PACKED else _blocks(copies, gpus_per_node)
    )


def _blocks(size: int, gpus_per_node: int) -> GroupShape:
    """Consecutive ranks. Where groups do not fill nodes evenly, the ranks that always lie together."""
    return GroupShape(size, math.gcd(size, gpus_per_node))


def _strides(size: int, stride: int, gpus_per_node: int) -> GroupShape:
    """Every so many ranks; one to a node where the stride leads beyond it, or its end cuts one."""
    return GroupShape(size, 1 if gpus_per_node % stride else math.gcd(size, gpus_per_node // stride))

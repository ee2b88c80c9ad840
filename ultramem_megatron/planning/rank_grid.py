"""Degrees of parallelism -> named lists of ranks. Integers only; process groups are made from these elsewhere.

Megatron's order is tp-cp-ep-dp-pp with tp fastest: ``rank = tp + tensor * (dp + data * pp)``. The ranks of one
pipeline stage are therefore one contiguous block, and so is each ``mem`` group inside it, unless its ranks are spread.
"""

from dataclasses import dataclass

from ultramem_megatron.config.check import require_divides, require_positive
from ultramem_megatron.config.memory import GroupPlacement

RankLists = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankGrid:
    """Every rank occurs once in ``stages``, once in ``mem``, once in ``mem_dp`` and once in ``mem_pp``; where tables
    are split as a grid, once in ``mem_inside`` and once in ``mem_across``, which are empty else."""

    world_size: int
    tensor: int
    pipeline: int
    memory_parallel_size: int

    stages: RankLists
    """Ranks of each pipeline stage, ascending."""

    mem: RankLists
    """Ranks that together hold one copy of each table of their stage."""

    mem_dp: RankLists
    """Ranks that hold the same shard; table gradients are reduced here."""

    mem_pp: RankLists
    """``mem`` groups joined over the stages: the ranks that hold one copy of all tables of the model."""

    mem_inside: RankLists = ()
    """Ranks of a ``mem`` group that count as one node: consecutive ones."""

    mem_across: RankLists = ()
    """Ranks of a ``mem`` group with the same place in their nodes."""

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return self.world_size // (self.tensor * self.pipeline)

    @property
    def mem_dp_size(self) -> int:
        """Copies of each table."""
        return len(self.mem_dp[0])


def build_rank_grid(
    *,
    world_size: int,
    tensor: int,
    pipeline: int,
    memory_parallel_size: int,
    node_size: int | None = None,
    placement: GroupPlacement = GroupPlacement.PACKED,
) -> RankGrid:
    """Lay out ``world_size`` ranks.

    Args:
        world_size: All ranks.
        tensor: Tensor-parallel ranks.
        pipeline: Pipeline stages.
        memory_parallel_size: Ranks of a ``mem`` group.
        node_size: Those of them that count as one node, where tables are split as a grid.
        placement: Which ranks make up a ``mem`` group.

    Raises:
        ConfigError: ``tensor * pipeline`` does not divide the ranks, ``memory_parallel_size`` does not divide those of
            one stage, or ``node_size`` does not divide ``memory_parallel_size``.
    """
    require_positive("the number of ranks", world_size)
    require_divides("parallelism.tensor * pipeline", tensor * pipeline, "the number of ranks", world_size)
    stage_size = world_size // pipeline
    require_divides("memory.parallel_size", memory_parallel_size, "the ranks of one pipeline stage", stage_size)
    if node_size is not None:
        require_divides("memory.node_size", node_size, "memory.parallel_size", memory_parallel_size)
    stages = _blocks(range(world_size), stage_size)
    copies = stage_size // memory_parallel_size
    assert node_size is None or placement is GroupPlacement.PACKED, "the nodes of a grid are consecutive ranks"
    if placement is GroupPlacement.SPREAD:
        mem_of_stage = [tuple(stage[copy::copies] for copy in range(copies)) for stage in stages]
    else:
        mem_of_stage = [_blocks(stage, memory_parallel_size) for stage in stages]
    mem = tuple(group for groups in mem_of_stage for group in groups)
    return RankGrid(
        world_size=world_size,
        tensor=tensor,
        pipeline=pipeline,
        memory_parallel_size=memory_parallel_size,
        stages=stages,
        mem=mem,
        mem_dp=tuple(holders for groups in mem_of_stage for holders in zip(*groups, strict=True)),
        mem_pp=tuple(tuple(rank for group in mem[copy::copies] for rank in group) for copy in range(copies)),
        mem_inside=() if node_size is None else tuple(node for group in mem for node in _blocks(group, node_size)),
        mem_across=() if node_size is None else tuple(g[i::node_size] for g in mem for i in range(node_size)),
    )


def _blocks(ranks: range | tuple[int, ...], size: int) -> RankLists:
    return tuple(tuple(ranks[start : start + size]) for start in range(0, len(ranks), size))

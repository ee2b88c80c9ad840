"""Rank lists: a hand-made grid, and what must hold for every grid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramem_megatron.config.memory import GroupPlacement
from ultramem_megatron.errors import ConfigError
from ultramem_megatron.planning.rank_grid import RankGrid, RankLists, build_rank_grid


def test_two_stages_of_four_ranks_in_pairs() -> None:
    grid = build_rank_grid(world_size=8, tensor=2, pipeline=2, memory_parallel_size=2)
    assert grid.stages == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert grid.mem == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert grid.mem_dp == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert grid.mem_pp == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert (grid.data, grid.mem_dp_size) == (2, 2)


def test_ranks_of_a_table_far_apart() -> None:
    spread = GroupPlacement.SPREAD
    grid = build_rank_grid(world_size=8, tensor=1, pipeline=1, memory_parallel_size=2, placement=spread)
    assert grid.mem == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert grid.mem_dp == ((0, 1, 2, 3), (4, 5, 6, 7))
    two = build_rank_grid(world_size=8, tensor=1, pipeline=2, memory_parallel_size=2, placement=spread)
    assert two.mem == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert two.mem_pp == ((0, 2, 4, 6), (1, 3, 5, 7))


def test_a_grid_of_two_nodes_of_two_ranks() -> None:
    grid = build_rank_grid(world_size=8, tensor=1, pipeline=2, memory_parallel_size=4, node_size=2)
    assert grid.mem == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert grid.mem_inside == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert grid.mem_across == ((0, 2), (1, 3), (4, 6), (5, 7))
    with pytest.raises(ConfigError, match=r"memory.node_size = 3 must divide memory.parallel_size = 4; .* 1, 2, 4"):
        build_rank_grid(world_size=8, tensor=1, pipeline=2, memory_parallel_size=4, node_size=3)


@st.composite
def grids(draw: st.DrawFn) -> RankGrid:
    tensor, data, pipeline = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    stage_ranks = tensor * data
    parallel_size = draw(st.sampled_from([p for p in range(1, stage_ranks + 1) if stage_ranks % p == 0]))
    return build_rank_grid(
        world_size=stage_ranks * pipeline,
        tensor=tensor,
        pipeline=pipeline,
        memory_parallel_size=parallel_size,
        placement=draw(st.sampled_from([GroupPlacement.PACKED, GroupPlacement.SPREAD])),
    )


@given(grids())
def test_every_family_covers_each_rank_once(grid: RankGrid) -> None:
    for family in (grid.stages, grid.mem, grid.mem_dp, grid.mem_pp):
        assert sorted(rank for group in family for rank in group) == list(range(grid.world_size))
        assert all(list(group) == sorted(group) for group in family)
        assert len({len(group) for group in family}) == 1


@given(grids())
def test_a_stage_holds_the_ranks_of_megatrons_order(grid: RankGrid) -> None:
    for stage, ranks in enumerate(grid.stages):
        expected = {tp + grid.tensor * (dp + grid.data * stage) for tp in range(grid.tensor) for dp in range(grid.data)}
        assert set(ranks) == expected


@given(grids())
def test_groups_cross_as_they_should(grid: RankGrid) -> None:
    assert _all_within(grid.mem, grid.stages)
    assert _all_within(grid.mem_dp, grid.stages)
    assert _all_within(grid.mem, grid.mem_pp)
    for mem in grid.mem:
        assert all(len(set(mem) & set(replicas)) <= 1 for replicas in grid.mem_dp)
    place = {rank: index for group in grid.mem for index, rank in enumerate(group)}
    for replicas in grid.mem_dp:
        assert len({place[rank] for rank in replicas}) == 1
    for copy in grid.mem_pp:
        assert all(len(set(copy) & set(stage)) == grid.memory_parallel_size for stage in grid.stages)


def _all_within(inner: RankLists, outer: RankLists) -> bool:
    return all(any(set(group) <= set(whole) for whole in outer) for group in inner)


def test_degrees_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"memory.parallel_size = 3 must divide .* = 4; near it these do: 1, 2, 4"):
        build_rank_grid(world_size=8, tensor=1, pipeline=2, memory_parallel_size=3)
    with pytest.raises(ConfigError, match=r"tensor \* pipeline = 6 must divide the number of ranks = 8"):
        build_rank_grid(world_size=8, tensor=3, pipeline=2, memory_parallel_size=1)
    with pytest.raises(ConfigError, match="the number of ranks = 0 must be greater than 0"):
        build_rank_grid(world_size=0, tensor=1, pipeline=1, memory_parallel_size=1)

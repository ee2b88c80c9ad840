"""How many ranks of a group share a node, against the lists of ranks themselves."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ultramem_megatron.config.memory import GroupPlacement
from ultramem_megatron.planning.placement import GroupShape, mem_dp_shape, mem_shape
from ultramem_megatron.planning.rank_grid import RankLists, build_rank_grid

PLACES = (GroupPlacement.PACKED, GroupPlacement.SPREAD)


def counted(groups: RankLists, gpus_per_node: int) -> set[tuple[int, ...]]:
    """Ranks on each node of each group, as they really lie."""
    return {tuple(sorted(Counter(rank // gpus_per_node for rank in group).values())) for group in groups}


@given(
    gpus_per_node=st.sampled_from([1, 2, 4, 8]),
    nodes=st.sampled_from([1, 2, 3, 4, 8]),
    pipeline=st.sampled_from([1, 2]),
    placement=st.sampled_from(PLACES),
    data=st.data(),
)
def test_shapes_are_those_of_the_lists(
    gpus_per_node: int, nodes: int, pipeline: int, placement: GroupPlacement, data: st.DataObject
) -> None:
    """Where the nodes hold whole groups or whole strides: powers of two, as clusters are."""
    world = gpus_per_node * nodes * pipeline
    stage = world // pipeline
    ranks = data.draw(st.sampled_from([p for p in (1, 2, 4, 8, 16, 32, 64) if stage % p == 0]))
    grid = build_rank_grid(
        world_size=world, tensor=1, pipeline=pipeline, memory_parallel_size=ranks, placement=placement
    )
    for lists, shape in (
        (grid.mem, mem_shape(placement, ranks, stage, gpus_per_node)),
        (grid.mem_dp, mem_dp_shape(placement, ranks, stage, gpus_per_node)),
    ):
        found = counted(lists, gpus_per_node)
        if len(found) == 1 and len(set(next(iter(found)))) == 1:
            assert found == {(shape.node_ranks,) * shape.nodes}
        else:
            # uneven: what always lies together at least
            assert shape.node_ranks <= max(max(one) for one in found)


def test_a_dgx_pair_by_hand() -> None:
    assert mem_shape(GroupPlacement.PACKED, 8, 16, 8) == GroupShape(8, 8)
    assert mem_shape(GroupPlacement.SPREAD, 8, 16, 8) == GroupShape(8, 4)
    assert mem_dp_shape(GroupPlacement.PACKED, 8, 16, 8) == GroupShape(2, 1)
    assert mem_dp_shape(GroupPlacement.SPREAD, 8, 16, 8) == GroupShape(2, 2)
    assert (GroupShape(16, 8).nodes, GroupShape(2, 1).nodes) == (2, 2)

"""What is measured: groups that plans use, sizes of which half are held out, bytes as the curves count them."""

import pytest

from ultramem_megatron.planning.calibration.schedule import group_sizes, is_held_out, make_schedule, network_bytes
from ultramem_megatron.planning.profile import Collective


@pytest.mark.parametrize(
    ("per_node", "nodes", "sizes"),
    [
        pytest.param(4, 1, [2, 4], id="one node"),
        pytest.param(8, 4, [2, 4, 8, 16, 32], id="nodes"),
        pytest.param(6, 1, [2, 3, 6], id="odd"),
        pytest.param(1, 3, [3], id="a rank each"),
    ],
)
def test_groups_are_those_that_divide_the_ranks(per_node: int, nodes: int, sizes: list[int]) -> None:
    assert group_sizes(per_node, nodes) == sizes


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_each_curve_has_points_to_fit_and_to_check(on_gpu: bool, quick: bool) -> None:
    schedule = make_schedule(on_gpu=on_gpu, quick=quick)
    for sizes, least in ((schedule.message_bytes, 3), (schedule.row_bytes, 2)):
        held_out = [is_held_out(sizes, size) for size in sizes]
        assert held_out.count(False) >= least
        assert held_out.count(True) >= 1
        assert not held_out[-1]  # or a curve's end would be guessed
    assert set(schedule.alone_bytes) <= set(schedule.message_bytes)


def test_a_share_of_the_network_carries_what_leaves_the_node() -> None:
    # 16 ranks on 2 nodes: of 15 messages 8 leave; a ring leaves once for each of 8 shares
    assert network_bytes(Collective.ALL_TO_ALL, 15.0, 16, 8) == 8.0
    assert network_bytes(Collective.ALL_GATHER, 16.0, 16, 8) == 2.0

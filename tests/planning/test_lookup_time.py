"""Seconds of collectives and lookups, against the reckoning by hand of published A100 numbers."""

import pytest

from ultramem_megatron.config.memory import GroupPlacement, PartitionName
from ultramem_megatron.planning.comm_cost import LookupShape, partition_bytes
from ultramem_megatron.planning.link_time import collective_seconds
from ultramem_megatron.planning.lookup_time import lookup_time, owner_factor
from ultramem_megatron.planning.placement import GroupShape, mem_shape
from ultramem_megatron.planning.profile import ClusterProfile, Collective, Level
from ultramem_megatron.planning.profile_file import built_in_profile
from ultramem_megatron.planning.time_part import Pass, Phase

NUMBER_WISE, POOLED = PartitionName.NUMBER_WISE, PartitionName.NUMBER_WISE_POOLED
DIMENSION_WISE, GRID = PartitionName.DIMENSION_WISE, PartitionName.GRID
MB = 1e6


@pytest.fixture
def a100() -> ClusterProfile:
    return built_in_profile("dgx-a100-80g")


def test_a_group_of_one_sends_nothing(a100: ClusterProfile) -> None:
    assert collective_seconds(a100, Collective.ALL_TO_ALL, 0, GroupShape(1, 1)) == (Level.NODE, 0)


def test_an_all_to_all_leaves_the_node_through_the_senders_card(a100: ClusterProfile) -> None:
    """2 nodes of 8: 8 of 15 peers are in the other node; 20 GB/s a card, 14 peers more than the curve's two."""
    level, seconds = collective_seconds(a100, Collective.ALL_TO_ALL, 150 * MB, GroupShape(16, 8))
    assert level is Level.NETWORK
    assert seconds == pytest.approx(40e-6 + 14 * 1e-6 + 80 * MB / 20e9)


def test_an_all_gather_shares_the_cards_of_the_node(a100: ClusterProfile) -> None:
    """8 cards of 24 GB/s work for each ring: 192 GB/s, as NVIDIA states it (nccl#1576)."""
    _, together = collective_seconds(a100, Collective.ALL_GATHER, 1920 * MB, GroupShape(16, 8))
    assert together == pytest.approx(1920 * MB / 192e9, rel=0.01)
    _, alone = collective_seconds(a100, Collective.ALL_GATHER, 1920 * MB, GroupShape(2, 1))
    assert alone == pytest.approx(1920 * MB / 24e9, rel=0.01)


@pytest.mark.parametrize(
    ("picks", "width", "ranks", "number_wise", "pooled", "dimension_wise"),
    [
        (160, 384, 8, 8.1, 0.50, 0.43),
        (160, 384, 32, 73, 15, 2.3),
        (160, 384, 128, 94, 54, 7.8),
        (32, 192, 32, None, None, None),
    ],
)
def test_collectives_of_a_lookup_on_a100s(
    a100: ClusterProfile,
    picks: int,
    width: int,
    ranks: int,
    number_wise: float | None,
    pooled: float | None,
    dimension_wise: float | None,
) -> None:
    """Milliseconds worked out by hand for 8,192 tokens in bf16, without latencies, blocks and repeated rows."""
    shape = LookupShape(tokens=8192, picks=picks, num_rows=10**8, value_dim=width, element_bytes=2)
    group = mem_shape(GroupPlacement.PACKED, ranks, ranks, 8)
    found = {}
    for partition in (NUMBER_WISE, POOLED, DIMENSION_WISE):
        parts = lookup_time(a100, partition, shape, group).parts
        found[partition] = 1e3 * sum(part.seconds for part in parts if "." in part.path)
    for partition, expected in ((NUMBER_WISE, number_wise), (POOLED, pooled), (DIMENSION_WISE, dimension_wise)):
        if expected is not None:
            assert found[partition] == pytest.approx(expected, rel=0.4)
    if ranks > 8:
        assert found[NUMBER_WISE] > 5 * found[DIMENSION_WISE]


def test_bytes_and_time_disagree_across_nodes(a100: ClusterProfile) -> None:
    """128 ranks, 160 picks of 384: pooling at the owners sends less, and takes five times as long on the wire."""
    shape = LookupShape(tokens=8192, picks=160, num_rows=10**8, value_dim=384, element_bytes=2)
    group = mem_shape(GroupPlacement.PACKED, 128, 128, 8)
    sent, taken = {}, {}
    for partition in (POOLED, DIMENSION_WISE):
        wire = partition_bytes(partition, shape, 128)
        sent[partition] = wire.forward_bytes + wire.backward_bytes
        parts = lookup_time(a100, partition, shape, group).parts
        taken[partition] = sum(part.seconds for part in parts if "." in part.path)
    assert sent[POOLED] < sent[DIMENSION_WISE]
    assert taken[POOLED] > 5 * taken[DIMENSION_WISE]


@pytest.mark.parametrize("partition", [NUMBER_WISE, POOLED, DIMENSION_WISE, GRID, PartitionName.REPLICATED])
@pytest.mark.parametrize("pre_value_dim", [0, 64])
def test_every_message_has_its_time(a100: ClusterProfile, partition: PartitionName, pre_value_dim: int) -> None:
    ranks = 1 if partition is PartitionName.REPLICATED else 16
    shape = LookupShape(
        tokens=256,
        picks=8,
        num_rows=4096,
        value_dim=64,
        element_bytes=2,
        expansion=4,
        cores=2,
        pre_value_dim=pre_value_dim,
    )
    found = lookup_time(a100, partition, shape, mem_shape(GroupPlacement.PACKED, ranks, 32, 8), 8)
    wire = partition_bytes(partition, shape, ranks, 8)
    for which, messages in ((Pass.FORWARD, wire.forward), (Pass.BACKWARD, wire.backward)):
        timed = {part.name for part in found.parts if part.which is which and "." in part.path}
        assert timed == {name for name, count in messages.items() if count}
    assert found.forward_seconds == pytest.approx(sum(found.seconds(Pass.FORWARD, phase) for phase in Phase))
    assert found.forward_seconds > 0 < found.backward_seconds
    assert all(a100.uncertainty_fraction(part.path) > 0 for part in found.parts)


def test_a_grids_inner_messages_stay_in_the_node(a100: ClusterProfile) -> None:
    shape = LookupShape(tokens=256, picks=8, num_rows=4096, value_dim=64, element_bytes=2)
    found = lookup_time(a100, GRID, shape, mem_shape(GroupPlacement.PACKED, 16, 16, 8), 8)
    levels = {part.name: part.path.partition(".")[0] for part in found.parts if "." in part.path}
    assert {level for name, level in levels.items() if name.startswith("inside_")} == {"node"}
    assert {level for name, level in levels.items() if name.startswith("across_")} == {"network"}


def test_skew_loads_the_owners_of_rows_but_not_of_columns() -> None:
    even = LookupShape(tokens=4096, picks=32, num_rows=10**6, value_dim=64, element_bytes=2)
    hot = LookupShape(tokens=4096, picks=32, num_rows=10**6, value_dim=64, element_bytes=2, zipf_exponent=1.0)
    assert owner_factor(DIMENSION_WISE, hot, 64) == 1
    assert owner_factor(POOLED, hot, 64) > 2 > owner_factor(POOLED, even, 64)
    # each rank asks once for a row, however hot
    assert owner_factor(NUMBER_WISE, hot, 64) < 1.2

"""Bytes: against counts by hand and the paper's formulas, and their properties."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning.comm_cost import (
    LookupShape,
    OwnerCounts,
    WireBytes,
    dimension_wise_bytes,
    dimension_wise_product_bytes,
    grid_bytes,
    grid_product_bytes,
    number_wise_bytes,
    number_wise_pooled_bytes,
    number_wise_pooled_product_bytes,
    number_wise_product_bytes,
    partition_bytes,
)
from ultramem_megatron.planning.paper_cost import paper_dimension_wise_bytes, paper_number_wise_bytes
from ultramem_megatron.planning.skew import expected_distinct
from ultramem_megatron.planning.sync_cost import SyncBytes, table_sync_bytes

SMALL = LookupShape(tokens=5, picks=3, num_rows=100, value_dim=8, element_bytes=2, expansion=4, cores=2)
WITH_PRE_VALUES = replace(SMALL, pre_value_dim=12)


def test_number_wise_by_hand() -> None:
    """4 ranks; 11 of the 15 lookups leave, 9 of other ranks are answered; a row is 8 x 2 bytes."""
    wire = number_wise_bytes(SMALL, 4, off_rank_rows=11, served_rows=9)
    assert wire.forward == {"split_sizes": 24, "row_numbers": 44, "rows": 144}
    assert wire.backward == {"row_gradients": 176}
    assert (wire.forward_bytes, wire.backward_bytes) == (212, 176)


def test_number_wise_expects_equally_likely_rows() -> None:
    """100 rows, each missed by all 15 picks with a chance of 0.99 ** 15."""
    wire = number_wise_bytes(SMALL, 4)
    rows = 100 * (1 - 0.99**15) * 3 / 4
    assert wire.forward["row_numbers"] == pytest.approx(4 * rows)
    assert wire.forward["rows"] == pytest.approx(16 * rows)
    assert wire == number_wise_bytes(SMALL, 4, off_rank_rows=wire.forward["row_numbers"] / 4)


@pytest.mark.parametrize(("draws", "kinds"), [(15, 100), (500, 100), (3, 1), (0, 7), (1, 10**9)])
def test_distinct_draws_are_as_many_as_expected(draws: int, kinds: int) -> None:
    source = random.Random(1)
    trials = [len({source.randrange(kinds) for _ in range(draws)}) for _ in range(400)]
    assert sum(trials) / 400 == pytest.approx(expected_distinct(draws, kinds), rel=0.01)


def test_few_draws_of_many_kinds_are_nearly_all_distinct() -> None:
    assert expected_distinct(1000, 10**12) == pytest.approx(1000 - 1000 * 999 / 2 / 10**12, rel=1e-12)


def test_pooled_at_owners_by_hand() -> None:
    """4 ranks; 11 of 15 picks in 9 groups leave, 10 in 8 come; a pick has two scores of 2 bytes, a sum is 8 x 2."""
    counts = OwnerCounts(sent_picks=11, sent_groups=9, served_picks=10, served_groups=8)
    wire = number_wise_pooled_bytes(SMALL, 4, counts)
    assert wire.forward == {"split_sizes": 48, "row_numbers": 44, "scores": 44, "partial_sums": 128}
    assert wire.backward == {"pooled_gradients": 144, "score_gradients": 40}
    wire = number_wise_pooled_product_bytes(WITH_PRE_VALUES, 4, counts)
    assert wire.forward == {"pre_split_sizes": 48, "pre_row_numbers": 44, "pre_vectors": 216, "pre_products": 40}
    assert wire.backward == {"pre_product_gradients": 44, "pre_vector_gradients": 192}


def test_pooled_at_owners_expects_picks_to_meet() -> None:
    """3 picks of a token: each of its 16 blocks at owners is missed by all with a chance of (15 / 16) ** 3."""
    wire = number_wise_pooled_bytes(SMALL, 4)
    assert wire.forward["row_numbers"] == 4 * 15 * 3 / 4
    assert wire.forward["partial_sums"] == pytest.approx(16 * 5 * 16 * (1 - (15 / 16) ** 3) * 3 / 4)
    products = number_wise_pooled_product_bytes(WITH_PRE_VALUES, 4)
    assert products.forward["pre_vectors"] == pytest.approx(24 * 5 * 4 * (1 - (3 / 4) ** 3) * 3 / 4)


def test_pooling_at_owners_pays_where_many_picks_meet() -> None:
    """84 picks of wide rows over 8 ranks: 8 owners send a sum each in place of 84 rows; over 512 hardly two meet."""
    shape = LookupShape(tokens=4096, picks=84, num_rows=10**9, value_dim=1024, element_bytes=2)
    few, many = (
        {p: partition_bytes(p, shape, ranks).forward_bytes for p in PartitionName if p is not PartitionName.AUTO}
        for ranks in (8, 512)
    )
    assert few[PartitionName.NUMBER_WISE_POOLED] < few[PartitionName.NUMBER_WISE] / 9
    assert many[PartitionName.NUMBER_WISE_POOLED] > many[PartitionName.NUMBER_WISE] * 0.9


def test_dimension_wise_by_hand() -> None:
    """4 ranks; 15 picks go to 3 others; 5 tokens x 4 blocks x 2 columns x 2 bytes go to each of 3 others."""
    wire = dimension_wise_bytes(SMALL, 4)
    assert wire.forward == {"row_numbers": 180, "blocks": 45, "scores": 180, "pooled_pieces": 240}
    assert wire.backward == {"pooled_gradients": 240, "score_gradients": 360}
    assert (wire.forward_bytes, wire.backward_bytes) == (645, 600)


def test_dimension_wise_of_pkm_sends_no_blocks() -> None:
    shape = replace(SMALL, expansion=1, cores=1, element_bytes=4)
    wire = dimension_wise_bytes(shape, 2)
    assert wire.forward == {"row_numbers": 60, "blocks": 0, "scores": 60, "pooled_pieces": 80}
    assert wire.backward == {"pooled_gradients": 80, "score_gradients": 60}


def test_number_wise_products_by_hand() -> None:
    """4 ranks; 11 of the 15 rows are elsewhere, 9 of others here; a row of pre-values is 12 x 2 bytes."""
    wire = number_wise_product_bytes(WITH_PRE_VALUES, 4, off_rank_rows=11, served_rows=9)
    assert wire.forward == {"pre_split_sizes": 24, "pre_row_numbers": 44, "pre_rows": 216}
    assert wire.backward == {"pre_row_gradients": 264}
    expected = number_wise_product_bytes(WITH_PRE_VALUES, 4)
    rows = number_wise_bytes(replace(SMALL, value_dim=12), 4)
    assert list(expected.breakdown.values()) == list(rows.breakdown.values())


def test_dimension_wise_products_by_hand() -> None:
    """4 ranks; 15 picks and their fp32 products, for 3 others; 5 vectors x 3 columns x 2 bytes to each of 3 others."""
    wire = dimension_wise_product_bytes(WITH_PRE_VALUES, 4)
    assert wire.forward == {"pre_row_numbers": 180, "pre_vectors": 90, "pre_products": 180}
    assert wire.backward == {"pre_product_gradients": 180, "pre_vector_gradients": 90}


def test_grid_by_hand() -> None:
    """4 nodes of 2; inside, 15 picks go to the other rank, and 5 tokens x 4 blocks x 4 columns x 2 bytes; between nodes
    20 of the rows of 10 tokens are elsewhere, 18 of others here, in halves of 4 x 2 bytes."""
    wire = grid_bytes(SMALL, 8, 2, off_node_rows=20, served_rows=18)
    inside = {"inside_row_numbers": 60, "inside_blocks": 15, "inside_scores": 60, "inside_pooled_pieces": 160}
    assert wire.forward == {**inside, "across_split_sizes": 24, "across_row_numbers": 80, "across_rows": 144}
    back = {"inside_pooled_gradients": 160, "inside_score_gradients": 120, "across_row_gradients": 160}
    assert wire.backward == back
    wire = grid_product_bytes(WITH_PRE_VALUES, 8, 2, off_node_rows=20, served_rows=18)
    inside = {"inside_pre_row_numbers": 60, "inside_pre_vectors": 60, "inside_pre_products": 60}
    across = {"across_pre_split_sizes": 24, "across_pre_row_numbers": 80, "across_pre_rows": 216}
    assert wire.forward == {**inside, **across}
    back = {"inside_pre_product_gradients": 60, "inside_pre_vector_gradients": 60, "across_pre_row_gradients": 240}
    assert wire.backward == back


def test_a_grid_expects_the_rows_of_a_whole_node() -> None:
    """The 30 picks of two ranks meet in fewer rows than twice those of 15."""
    rows = 100 * (1 - 0.99**30) * 3 / 4
    wire = grid_bytes(SMALL, 8, 2)
    assert wire.forward["across_row_numbers"] == pytest.approx(4 * rows)
    assert wire.forward["across_rows"] == wire.backward["across_row_gradients"] == pytest.approx(8 * rows)
    products = grid_product_bytes(WITH_PRE_VALUES, 8, 2)
    assert products.forward["across_pre_rows"] == pytest.approx(12 * rows)


def test_a_row_reaches_a_node_once_in_a_grid_and_once_each_rank_number_wise() -> None:
    """Every rank needs nearly all of 10,000 rows: 8 ranks of a node fetch an eighth of each."""
    shape = LookupShape(tokens=4096, picks=84, num_rows=10_000, value_dim=1024, element_bytes=2)
    rows = number_wise_bytes(shape, 16).forward["rows"]
    assert grid_bytes(shape, 16, 8).forward["across_rows"] == pytest.approx(rows / 8 * (1 / 2) / (15 / 16))


def test_a_grid_of_one_node_or_of_nodes_of_one_rank_sends_as_much_as_the_others() -> None:
    for grid, lone in ((grid_bytes, dimension_wise_bytes), (grid_product_bytes, dimension_wise_product_bytes)):
        assert grid(WITH_PRE_VALUES, 4, 4).forward_bytes == lone(WITH_PRE_VALUES, 4).forward_bytes
        assert grid(WITH_PRE_VALUES, 4, 4).backward_bytes == lone(WITH_PRE_VALUES, 4).backward_bytes
    for grid, rows in ((grid_bytes, number_wise_bytes), (grid_product_bytes, number_wise_product_bytes)):
        assert grid(WITH_PRE_VALUES, 4, 1).forward_bytes == rows(WITH_PRE_VALUES, 4).forward_bytes
        assert grid(WITH_PRE_VALUES, 4, 1).backward_bytes == rows(WITH_PRE_VALUES, 4).backward_bytes


@pytest.mark.parametrize(
    ("partition", "lookup", "products"),
    [
        (PartitionName.NUMBER_WISE, number_wise_bytes, number_wise_product_bytes),
        (PartitionName.NUMBER_WISE_POOLED, number_wise_pooled_bytes, number_wise_pooled_product_bytes),
        (PartitionName.DIMENSION_WISE, dimension_wise_bytes, dimension_wise_product_bytes),
    ],
)
def test_a_layer_with_pre_values_sends_for_both_tables(
    partition: PartitionName,
    lookup: Callable[[LookupShape, int], WireBytes],
    products: Callable[[LookupShape, int], WireBytes],
) -> None:
    wire = partition_bytes(partition, WITH_PRE_VALUES, 4)
    both = lookup(SMALL, 4).breakdown | products(WITH_PRE_VALUES, 4).breakdown
    assert wire.breakdown == both
    assert lookup(WITH_PRE_VALUES, 4) == lookup(SMALL, 4) == partition_bytes(partition, SMALL, 4)


def test_a_grid_with_pre_values_sends_for_both_tables() -> None:
    wire = partition_bytes(PartitionName.GRID, WITH_PRE_VALUES, 4, 2)
    assert wire.breakdown == grid_bytes(SMALL, 4, 2).breakdown | grid_product_bytes(WITH_PRE_VALUES, 4, 2).breakdown


def test_replicated_pre_values_send_nothing() -> None:
    assert partition_bytes(PartitionName.REPLICATED, WITH_PRE_VALUES, 1) == WireBytes()


def test_one_rank_sends_nothing() -> None:
    for partition in set(PartitionName) - {PartitionName.AUTO}:
        wire = partition_bytes(partition, WITH_PRE_VALUES, 1)
        assert wire.forward_bytes == wire.backward_bytes == 0


def test_ours_equals_the_paper_where_both_count_the_same() -> None:
    shape = LookupShape(tokens=4096, picks=84, num_rows=10**9, value_dim=1024, element_bytes=2)
    number_wise = number_wise_bytes(shape, 64, off_rank_rows=4096 * 84 * 63 / 64)  # no row is picked twice
    assert number_wise.forward_bytes - number_wise.forward["split_sizes"] == paper_number_wise_bytes(4096, 84, 1024, 64)
    assert dimension_wise_bytes(shape, 64).forward_bytes == paper_dimension_wise_bytes(4096, 84, 1024, 64)


def test_adding_joins_by_name() -> None:
    total = dimension_wise_bytes(SMALL, 4) + number_wise_bytes(SMALL, 4, off_rank_rows=11)
    assert total.breakdown["forward.row_numbers"] == 180 + 44
    assert total.breakdown["forward.blocks"] == 45
    assert total.breakdown["backward.row_gradients"] == 176
    assert total.forward_bytes == 645 + 24 + 44 + 176
    assert WireBytes() + total == total
    assert sum(total.breakdown.values()) == total.forward_bytes + total.backward_bytes
    assert SyncBytes(1, 2) + SyncBytes(10, 20) == SyncBytes(11, 22)


def test_table_sync_by_hand() -> None:
    sync = table_sync_bytes(shard_elements=1200, replicas=4, element_bytes=2)
    assert (sync.gradient_bytes, sync.weight_bytes, sync.total_bytes) == (3600, 1800, 5400)
    assert table_sync_bytes(shard_elements=1200, replicas=1, element_bytes=2).total_bytes == 0


@given(tokens=st.integers(1, 5000), picks=st.integers(1, 100), ranks=st.integers(1, 64), piece=st.integers(1, 32))
def test_dimension_wise_counts_are_whole_bytes(tokens: int, picks: int, ranks: int, piece: int) -> None:
    width = piece * ranks
    shape = LookupShape(
        tokens=tokens,
        picks=picks,
        num_rows=100,
        value_dim=width,
        element_bytes=2,
        cores=2,
        pre_value_dim=2 * width,
    )
    wire = partition_bytes(PartitionName.DIMENSION_WISE, shape, ranks)
    assert all(isinstance(count, int) for count in wire.breakdown.values())
    assert wire.backward["pooled_gradients"] == wire.forward["pooled_pieces"]
    assert wire.backward["pre_vector_gradients"] == wire.forward["pre_vectors"]

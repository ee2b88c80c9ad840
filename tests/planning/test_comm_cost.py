"""Bytes: the paper's table, our own against counts by hand, and properties of both."""

import math
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
    SyncBytes,
    WireBytes,
    dimension_wise_bytes,
    dimension_wise_product_bytes,
    expected_distinct,
    number_wise_bytes,
    number_wise_pooled_bytes,
    number_wise_pooled_product_bytes,
    number_wise_product_bytes,
    paper_break_even_value_dim,
    paper_dimension_wise_bytes,
    paper_number_wise_bytes,
    partition_bytes,
    table_sync_bytes,
)
from ultramem_megatron.units import MIB

SMALL = LookupShape(tokens=5, picks=3, num_rows=100, value_dim=8, element_bytes=2, expansion=4, cores=2)
WITH_PRE_VALUES = replace(SMALL, pre_value_dim=12)


@pytest.mark.parametrize(
    ("value_dim", "picks", "ranks", "number_wise", "dimension_wise"),
    [
        (192, 32, 8, 10_864, 1_680),
        (512, 32, 8, 28_784, 2_240),
        (768, 70, 8, 94_325, 4_284),
        (1024, 84, 8, 150_822, 5_320),
        (1024, 84, 64, 169_674.75, 33_768),
        (1024, 84, 512, 172_031.34, 259_588),
    ],
)
def test_the_papers_volumes_per_token(
    value_dim: int, picks: int, ranks: int, number_wise: float, dimension_wise: float
) -> None:
    assert paper_number_wise_bytes(1, picks, value_dim, ranks) == pytest.approx(number_wise, abs=0.0051)
    assert paper_dimension_wise_bytes(1, picks, value_dim, ranks) == pytest.approx(dimension_wise, abs=0.0051)


@pytest.mark.parametrize(
    ("ranks", "number_wise", "dimension_wise", "with_expansion_and_cores"),
    [
        (8, 589.15, 20.78, 46.38),
        (64, 662.79, 131.91, 196.88),
        (256, 670.68, 510.00, 701.25),
        (512, 672.0, 1014.02, 1373.31),
    ],
)
def test_the_papers_volumes_at_4096_tokens(
    ranks: int, number_wise: float, dimension_wise: float, with_expansion_and_cores: float
) -> None:
    assert paper_number_wise_bytes(4096, 84, 1024, ranks) / MIB == pytest.approx(number_wise, abs=0.0051)
    assert paper_dimension_wise_bytes(4096, 84, 1024, ranks) / MIB == pytest.approx(dimension_wise, abs=0.0051)
    extended = paper_dimension_wise_bytes(4096, 84, 1024, ranks, expansion=4, cores=2)
    assert extended / MIB == pytest.approx(with_expansion_and_cores, abs=0.0051)


@pytest.mark.parametrize(
    ("picks", "expansion", "cores", "break_even"),
    [
        (16, 1, 1, [4.3, 10.7, 23.5, 49.1, 100.3, 202.7, 407.5, 817.1, 1636.3, 3274.7]),
        (32, 1, 1, [4.1, 10.3, 22.7, 47.5, 97.0, 196.1, 394.3, 790.7, 1583.5, 3169.0]),
        (84, 1, 1, [4.0, 10.1, 22.3, 46.6, 95.1, 192.3, 386.6, 775.2, 1552.5, 3107.0]),
        (84, 4, 2, [6.3, 14.7, 31.5, 65.1, 132.3, 266.7, 535.5, 1073.1, 2148.3, 4298.7]),
    ],
)
def test_break_even_widths(picks: int, expansion: int, cores: int, break_even: list[float]) -> None:
    found = [paper_break_even_value_dim(picks, 2**power, expansion, cores) for power in range(1, 11)]
    assert found == pytest.approx(break_even, abs=0.051)


@pytest.mark.parametrize(("value_dim", "picks", "ranks"), [(512, 32, 166), (768, 70, 253), (1024, 84, 338)])
def test_break_even_ranks(value_dim: int, picks: int, ranks: int) -> None:
    """Dimension-wise still wins at the rank count given, and no longer some ranks later."""
    assert paper_break_even_value_dim(picks, ranks - 1) < value_dim < paper_break_even_value_dim(picks, ranks + 1)


@given(picks=st.integers(5, 200), ranks=st.integers(2, 1024), expansion=st.integers(1, 4), cores=st.integers(1, 4))
def test_volumes_are_equal_at_the_break_even(picks: int, ranks: int, expansion: int, cores: int) -> None:
    width = paper_break_even_value_dim(picks, ranks, expansion, cores)
    below, above = math.floor(width), math.ceil(width) + 1
    for value_dim, dimension_wise_is_dearer in ((below, True), (above, False)):
        number_wise = paper_number_wise_bytes(1, picks, value_dim, ranks)
        dimension_wise = paper_dimension_wise_bytes(1, picks, value_dim, ranks, expansion, cores)
        assert (dimension_wise >= number_wise * (1 - 1e-12)) is dimension_wise_is_dearer


def test_few_picks_never_favour_dimension_wise() -> None:
    assert paper_break_even_value_dim(1, 8) == math.inf
    assert paper_break_even_value_dim(4, 8, expansion=4) == math.inf


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

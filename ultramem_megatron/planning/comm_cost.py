"""Bytes on the wire: payload that one rank sends to *other* ranks.

What this project's partitions send, forward and backward, to the byte. The formulas of the UltraMem paper, which are
coarser, are in ``paper_cost.py``.

Letters: T tokens of this rank in one micro-batch, K rows a token, P ranks of the ``mem`` group, L of them in a node,
Dv width of a row, Dp width of a pre-value (UltraMemV2), E pooled vectors, h cores, b bytes of an element, N rows of the
table. P - 1 of P equally loaded shares are elsewhere, hence the factor (P - 1) / P throughout.
Where counts depend on the picks, a function takes those that were measured, and is then exact, or expects them under
the shape's skew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning.skew import expected_distinct

INT64_BYTES = 8
INT32_BYTES = 4
UINT8_BYTES = 1
FP32_BYTES = 4
BF16_BYTES = 2

PRE_VALUES = "pre_"
"""Before the names of what travels for pre-values, so that they stay apart from those of the lookup."""


@dataclass(frozen=True, slots=True)
class WireBytes:
    """What one rank sends for one table in one micro-batch, by name. Fractions of a byte occur in expectations."""

    forward: Mapping[str, float] = field(default_factory=dict)
    backward: Mapping[str, float] = field(default_factory=dict)

    @property
    def forward_bytes(self) -> float:
        """Sum of the forward pass."""
        return sum(self.forward.values())

    @property
    def backward_bytes(self) -> float:
        """Sum of the backward pass."""
        return sum(self.backward.values())

    @property
    def breakdown(self) -> dict[str, float]:
        """``forward.<name>`` and ``backward.<name>`` -> bytes."""
        passes = (("forward", self.forward), ("backward", self.backward))
        return {f"{which}.{name}": count for which, parts in passes for name, count in parts.items()}

    def __add__(self, other: "WireBytes") -> "WireBytes":
        return WireBytes(_joined(self.forward, other.forward), _joined(self.backward, other.backward))


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupShape:
    """One lookup, with the inner products before it where there are any: the sizes that the traffic depends on."""

    tokens: int
    """Tokens of this rank in one micro-batch [T]."""

    picks: int
    """Rows read per token [K]."""

    num_rows: int
    """Rows of the table [N]."""

    value_dim: int
    """Stored width of a row [Dv]."""

    element_bytes: int
    """Bytes of an element of rows, scores and pooled values [b]: 2 for bf16, 4 for fp32."""

    expansion: int = 1
    """Pooled vectors per token [E]."""

    cores: int = 1
    """Scores per picked row [h]."""

    pre_value_dim: int = 0
    """Stored width of a row of the second table, whose inner products weigh the picks [Dp]; 0 without one."""

    zipf_exponent: float = 0.0
    """Skew of the picks, as in ``skew.py``; 0 when all rows are equally likely."""


def number_wise_bytes(
    shape: LookupShape, ranks: int, off_rank_rows: float | None = None, served_rows: float | None = None
) -> WireBytes:
    """A lookup: row numbers travel to the owners, rows back; row gradients to the owners. Each row travels once.

    Args:
        shape: The lookup; without its pre-values, which ``number_wise_product_bytes`` counts.
        ranks: P.
        off_rank_rows: Distinct rows of other ranks among the picks of this rank. Defaults to the expectation when
            all rows are equally likely.
        served_rows: Rows that other ranks ask of this rank, distinct for each of them. Defaults to
            ``off_rank_rows``: over all ranks of a group the two sums are equal.
    """
    if off_rank_rows is None:
        off_rank_rows = expected_off_rank_rows(shape, ranks)
    if served_rows is None:
        served_rows = off_rank_rows
    row_bytes = shape.element_bytes * shape.value_dim
    return WireBytes(
        forward={
            "split_sizes": INT64_BYTES * (ranks - 1),
            "row_numbers": INT32_BYTES * off_rank_rows,
            "rows": row_bytes * served_rows,
        },
        backward={"row_gradients": row_bytes * off_rank_rows},
    )


def number_wise_product_bytes(
    shape: LookupShape, ranks: int, off_rank_rows: float | None = None, served_rows: float | None = None
) -> WireBytes:
    """Inner products with pre-values: as a lookup of rows of their width, which are multiplied at home."""
    rows = number_wise_bytes(replace(shape, value_dim=shape.pre_value_dim), ranks, off_rank_rows, served_rows)
    return _prefixed(rows, PRE_VALUES)


@dataclass(frozen=True, slots=True)
class OwnerCounts:
    """What a rank asks of the owners of rows, itself left out, and what it answers as one."""

    sent_picks: float
    sent_groups: float
    """Picks of one token (of a lookup: and of one of its blocks) at one owner are a group."""
    served_picks: float
    served_groups: float


def number_wise_pooled_bytes(shape: LookupShape, ranks: int, counts: OwnerCounts | None = None) -> WireBytes:
    """A lookup: row numbers and scores travel to the owners, one partial sum for each group back; the reverse backward.

    Args:
        shape: The lookup; without its pre-values, which ``number_wise_pooled_product_bytes`` counts.
        ranks: P.
        counts: Groups of a token and a block. Defaults to the expectation when all rows and blocks are equally likely.
    """
    if counts is None:
        counts = _expected_owner_counts(shape, ranks, kinds=shape.expansion)
    sum_bytes = shape.element_bytes * shape.value_dim
    scores_bytes = shape.element_bytes * shape.cores
    return WireBytes(
        forward={
            "split_sizes": 2 * INT64_BYTES * (ranks - 1),
            "row_numbers": INT32_BYTES * counts.sent_picks,
            "scores": scores_bytes * counts.sent_picks,
            "partial_sums": sum_bytes * counts.served_groups,
        },
        backward={
            "pooled_gradients": sum_bytes * counts.sent_groups,
            "score_gradients": scores_bytes * counts.served_picks,
        },
    )


def number_wise_pooled_product_bytes(shape: LookupShape, ranks: int, counts: OwnerCounts | None = None) -> WireBytes:
    """Inner products with pre-values: row numbers and vectors travel to the owners, fp32 products back.

    Args:
        shape: The lookup.
        ranks: P.
        counts: Groups of a token. Defaults to the expectation when all rows are equally likely.
    """
    if counts is None:
        counts = _expected_owner_counts(shape, ranks, kinds=1)
    vector_bytes = shape.element_bytes * shape.pre_value_dim
    forward = {
        "split_sizes": 2 * INT64_BYTES * (ranks - 1),
        "row_numbers": INT32_BYTES * counts.sent_picks,
        "vectors": vector_bytes * counts.sent_groups,
        "products": FP32_BYTES * counts.served_picks,
    }
    backward = {
        "product_gradients": FP32_BYTES * counts.sent_picks,
        "vector_gradients": vector_bytes * counts.served_groups,
    }
    return _prefixed(WireBytes(forward, backward), PRE_VALUES)


def _expected_owner_counts(shape: LookupShape, ranks: int, kinds: int) -> OwnerCounts:
    """With ``kinds`` of groups a token at each owner, the picks falling evenly on all."""
    elsewhere = shape.tokens * (ranks - 1) / ranks
    picks, groups = elsewhere * shape.picks, elsewhere * expected_distinct(shape.picks, ranks * kinds)
    return OwnerCounts(picks, groups, picks, groups)


def expected_off_rank_rows(shape: LookupShape, ranks: int) -> float:
    """Distinct rows of other ranks among the picks of a rank."""
    distinct = expected_distinct(shape.tokens * shape.picks, shape.num_rows, shape.zipf_exponent)
    return distinct * (ranks - 1) / ranks


def dimension_wise_bytes(shape: LookupShape, ranks: int) -> WireBytes:
    """A lookup: row numbers, blocks and scores travel to every rank, pooled pieces back; the reverse backward.

    Args:
        shape: The lookup, without its pre-values; every rank of the group has the same number of tokens.
        ranks: P, a divisor of ``shape.value_dim``.

    The gradient of the scores is a sum over all columns, hence reduced over the ranks, in fp32.
    """
    assert shape.value_dim % ranks == 0, f"{ranks} ranks cannot share {shape.value_dim} columns"
    sent_picks = shape.tokens * shape.picks * (ranks - 1)
    pieces = (ranks - 1) * shape.tokens * shape.expansion * (shape.value_dim // ranks) * shape.element_bytes
    forward = {
        "row_numbers": INT32_BYTES * sent_picks,
        "blocks": UINT8_BYTES * sent_picks if shape.expansion > 1 else 0,
        "scores": shape.element_bytes * shape.cores * sent_picks,
        "pooled_pieces": pieces,
    }
    return WireBytes(
        forward=forward,
        backward={"pooled_gradients": pieces, "score_gradients": FP32_BYTES * shape.cores * sent_picks},
    )


def dimension_wise_product_bytes(shape: LookupShape, ranks: int) -> WireBytes:
    """Inner products with pre-values: row numbers travel to every rank, and to each its columns of the vectors.

    Args:
        shape: The lookup; every rank of the group has the same number of tokens.
        ranks: P, a divisor of ``shape.pre_value_dim``.

    The partial products are summed over the ranks, hence reduced, in fp32; their gradients are gathered.
    """
    assert shape.pre_value_dim % ranks == 0, f"{ranks} ranks cannot share {shape.pre_value_dim} columns"
    sent_picks = shape.tokens * shape.picks * (ranks - 1)
    slices = (ranks - 1) * shape.tokens * (shape.pre_value_dim // ranks) * shape.element_bytes
    products = FP32_BYTES * sent_picks
    forward = {"row_numbers": INT32_BYTES * sent_picks, "vectors": slices, "products": products}
    return _prefixed(WireBytes(forward, {"product_gradients": products, "vector_gradients": slices}), PRE_VALUES)


def grid_bytes(
    shape: LookupShape,
    ranks: int,
    node_size: int,
    off_node_rows: float | None = None,
    served_rows: float | None = None,
) -> WireBytes:
    """A lookup: dimension-wise inside the node; between nodes number-wise, in rows of a rank's columns.

    A row travels to a node once, however many of the node's tokens pick it, each of its ranks fetching an L-th.

    Args:
        shape: The lookup, without its pre-values; every rank of a node has the same number of tokens.
        ranks: P.
        node_size: L, a divisor of ``ranks`` and of ``shape.value_dim``.
        off_node_rows: Distinct rows of other nodes among the picks of all tokens of this rank's node. Defaults to the
            expectation when all rows are equally likely.
        served_rows: Rows that other nodes ask of this one, distinct for each of them. Defaults to ``off_node_rows``.

    Names begin with ``inside_`` for what stays in the node and with ``across_`` for what leaves it.
    """
    inside = dimension_wise_bytes(shape, node_size)
    between = replace(_of_node(shape, node_size), value_dim=shape.value_dim // node_size)
    across = number_wise_bytes(between, ranks // node_size, off_node_rows, served_rows)
    return _prefixed(inside, "inside_") + _prefixed(across, "across_")


def grid_product_bytes(
    shape: LookupShape,
    ranks: int,
    node_size: int,
    off_node_rows: float | None = None,
    served_rows: float | None = None,
) -> WireBytes:
    """Inner products with pre-values: as the lookup, dimension-wise inside the node and number-wise between nodes.

    Args:
        shape: The lookup; every rank of a node has the same number of tokens.
        ranks: P.
        node_size: L, a divisor of ``ranks`` and of ``shape.pre_value_dim``.
        off_node_rows: As in ``grid_bytes``.
        served_rows: As in ``grid_bytes``.
    """
    inside = dimension_wise_product_bytes(shape, node_size)
    between = replace(_of_node(shape, node_size), pre_value_dim=shape.pre_value_dim // node_size)
    across = number_wise_product_bytes(between, ranks // node_size, off_node_rows, served_rows)
    return _prefixed(inside, "inside_") + _prefixed(across, "across_")


def _of_node(shape: LookupShape, node_size: int) -> LookupShape:
    """The tokens of all ranks of a node in one lookup."""
    return replace(shape, tokens=node_size * shape.tokens)


def partition_bytes(partition: PartitionName, shape: LookupShape, ranks: int, node_size: int = 1) -> WireBytes:
    """Expected traffic of one memory layer in one micro-batch: its lookup and, with pre-values, their inner products.

    Nothing when the tables are replicated. ``node_size`` (L) matters to a grid alone.
    """
    match partition:
        case PartitionName.NUMBER_WISE:
            products = number_wise_product_bytes(shape, ranks) if shape.pre_value_dim else WireBytes()
            return number_wise_bytes(shape, ranks) + products
        case PartitionName.NUMBER_WISE_POOLED:
            products = number_wise_pooled_product_bytes(shape, ranks) if shape.pre_value_dim else WireBytes()
            return number_wise_pooled_bytes(shape, ranks) + products
        case PartitionName.DIMENSION_WISE:
            products = dimension_wise_product_bytes(shape, ranks) if shape.pre_value_dim else WireBytes()
            return dimension_wise_bytes(shape, ranks) + products
        case PartitionName.GRID:
            products = grid_product_bytes(shape, ranks, node_size) if shape.pre_value_dim else WireBytes()
            return grid_bytes(shape, ranks, node_size) + products
        case PartitionName.REPLICATED:
            return WireBytes()
        case PartitionName.AUTO:
            raise AssertionError("a plan names a partition; auto is for the config")


def _prefixed(wire: WireBytes, prefix: str) -> WireBytes:
    """The same, each name with ``prefix`` before it."""
    forward, backward = (
        {f"{prefix}{n}": count for n, count in parts.items()} for parts in (wire.forward, wire.backward)
    )
    return WireBytes(forward, backward)


def _joined(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {name: left.get(name, 0) + right.get(name, 0) for name in [*left, *(n for n in right if n not in left)]}

"""The memory layers: what they are, where they sit, how their tables are split."""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from ultramem_megatron.config.check import Between, Share, Width, require_divides, require_positive, require_ranges
from ultramem_megatron.errors import ConfigError


class VariantName(StrEnum):
    """Which memory layer is built: how a slot is scored. Everything else is a switch of its own."""

    NONE = "none"
    """A dense model."""
    PKM = "pkm"
    """Product keys: a row score plus a column score. ``tucker_rank`` and ``cores`` play no part."""
    ULTRAMEM = "ultramem"
    """Tucker-decomposed scores (TDQKR) of several cores (MCS)."""
    ULTRAMEM_V2 = "ultramem_v2"
    """As ``ultramem``, but one projection for all virtual blocks, and weights times inner products with pre-values
    (arXiv 2508.18756)."""


class PartitionName(StrEnum):
    """How a value table is split over the ``mem`` group; ``auto`` leaves the choice to the planner."""

    AUTO = "auto"
    NUMBER_WISE = "number_wise"
    """Rows are split; they travel to the tokens that pick them."""
    NUMBER_WISE_POOLED = "number_wise_pooled"
    """Rows are split; a token's rows are summed where they are, and the sums travel."""
    DIMENSION_WISE = "dimension_wise"
    """Columns are split."""
    GRID = "grid"
    """Columns are split inside a node, rows between nodes."""
    REPLICATED = "replicated"
    """Every rank has the whole table."""


class GroupPlacement(StrEnum):
    """Which ranks of a pipeline stage make up a ``mem`` group; ``auto`` leaves the choice to the planner."""

    AUTO = "auto"
    PACKED = "packed"
    """Neighbours: a group lies in as few nodes as can be, the copies of a shard far apart. Fast lookups."""
    SPREAD = "spread"
    """Ranks far apart: the copies of a shard are neighbours. Fast synchronisation of the copies."""


_COUNT = re.compile(r"[1-9][0-9]{0,5}")
_SPAN = re.compile(r"\s*([0-9]{1,6})\s*:\s*([0-9]{1,6})\s*", re.ASCII)

MOST_ROWS = 2**31
"""Row numbers travel as int32 ..."""
MOST_BLOCKS = 2**8
"""... and block numbers as uint8."""


class KeyLayout(StrEnum):
    """What the Tucker ranks share."""

    SPLIT = "split"
    """Each rank has its own ``key_dim / tucker_rank`` channels of query and key: the paper's counts (its Table 2)."""
    FULL = "full"
    """Each rank has keys of ``key_dim``, and all read one query: the published code."""
    QUERY_PER_RANK = "query_per_rank"
    """Each rank has keys of ``key_dim`` and a query of its own: UltraMemV2."""


class Initialization(StrEnum):
    """How a memory layer starts."""

    IMPROVED = "improved"
    """Scores average 1, the output has the variance 1 / (2 L) of an MLP branch (paper section 4)."""
    PLAIN = "plain"
    """As product-key memories start: unit gains, values N(0, 1 / Dv), cores U(0, 1); the ladder's lower rungs."""


class ScoreGain(StrEnum):
    """Whose expected mean the initial gain of the scores divides out, so that the picks average 1."""

    PRODUCTS = "products"
    """That of the best products of a row and a column score: what a score is."""

    ONE_SIDE = "one_side"
    """That of the best scores of one side, the paper's E[Y] as it is reported (section 4); the picks then average
    2.4 to 3.6 and the output's variance is 6 to 12 times the intended 1 / (2 L)."""


@dataclass(frozen=True, slots=True)
class Span:
    """A memory layer reads at block ``read`` and adds to the output of block ``add``, counted from 1."""

    read: int
    add: int

    def __str__(self) -> str:
        return f"{self.read}:{self.add}"


def parse_spans(text: str) -> tuple[Span, ...]:
    """``"3:5/6:8"`` -> spans, in the paper's notation (section 2.3; blocks count from 1).

    Raises:
        ConfigError: A span is not ``a:b``, runs backwards, or overlaps the one before it.
    """
    spans: list[Span] = []
    for part in text.split("/"):
        match = _SPAN.fullmatch(part)
        if match is None:
            raise ConfigError(
                f"memory.spans = {_short(text)} is not a list of spans: {_short(part)} should read a:b, "
                'as in "1:2/3:4" (read at block a, add at block b, counted from 1)'
            )
        read, add = int(match[1]), int(match[2])
        if not 1 <= read <= add:
            raise ConfigError(
                f"memory.spans = {_short(text)}: span {part} is out of range or runs backwards; "
                "blocks count from 1 and the first number must not exceed the second"
            )
        if spans and read <= spans[-1].add:
            raise ConfigError(
                f"memory.spans = {_short(text)}: span {part} begins at or before block {spans[-1].add}, where "
                f"{spans[-1]} still runs; one result is under way at a time, so start it at {spans[-1].add + 1}"
            )
        spans.append(Span(read, add))
    return tuple(spans)


def _short(text: str) -> str:
    return f'"{text}"' if len(text) <= 100 else f'"{text[:100]}..."'


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """One memory layer a span. Symbols in brackets are those of the paper (section 2.3, appendix A)."""

    variant: VariantName = VariantName.NONE
    """``none`` (dense), ``pkm`` (product keys), ``ultramem`` or ``ultramem_v2``."""

    spans: str = ""
    """Where the layers read and add: ``"a:b/c:d"``, counted from 1 as in the paper."""

    keys_per_side: Annotated[int, Between(1, math.isqrt(MOST_ROWS))] = 128
    """Physical row (= column) keys [n]. A table holds n * n rows."""

    top_m: Annotated[int, Between(1, 2**16)] = 16
    """Slots kept per head and token [m]."""

    side_top_m: Annotated[int, Between(0, 2**16, "as many as top_m")] = 0
    """Row (= column) keys from which the slots are chosen; 0 for ``top_m``. A cap keeps the grid of candidates small
    when ``top_m`` is large (UltraMemV2: 128)."""

    heads: Annotated[int, Between(1, 1024)] = 2
    """Key sets [H]; all read one table."""

    heads_per_query: Annotated[int, Between(1, 1024)] = 2
    """Heads that share one query (paper Table 2, "share query"); 1 gives each its own."""

    key_dim: Width = 64
    """Width of a row (or column) key [Dk]; ``key_layout`` says what of it each Tucker rank has."""

    key_layout: KeyLayout = KeyLayout.SPLIT
    """What the Tucker ranks share."""

    value_dim: Width = 64
    """Stored width of a table row [Dv]. Where it is not ``model.hidden``, a projection follows the pooling (paper
    Table 2, "half vdim+proj")."""

    pre_value_dim: Annotated[int, Between(0, 2**20, "none")] = 0
    """``ultramem_v2``: width of a second table, whose row times a projection of the input weighs the slot [Dp]."""

    softmax: bool = False
    """Weigh a head's picks by the softmax of their scores instead of the scores: PKM as it was (paper Table 2, "rm
    softmax" takes it away)."""

    tucker_rank: Annotated[int, Between(0, 64)] = 2
    """Rank of the Tucker core [r] (TDQKR)."""

    cores: Annotated[int, Between(1, 1024)] = 2
    """Score cores [h] (MCS); core i weighs the i-th slice of the value dimension."""

    expansion: Annotated[int, Between(1, MOST_BLOCKS)] = 4
    """Virtual blocks [E] (IVE); a square, because row and column keys grow by sqrt(E) each."""

    query_conv_kernel: Annotated[int, Between(0, 1024, "none")] = 5
    """Taps of the causal depthwise convolution before the query projection; 0 for none. The paper does not
    state it; 5 fits the parameter and FLOP differences of its Table 2."""

    normalize_keys: bool = True
    """Norm on queries and keys (paper Table 2, "q/k LN")."""

    initialization: Initialization = Initialization.IMPROVED
    """How the layers start (paper Table 2, "improved init")."""

    score_gain: ScoreGain = ScoreGain.PRODUCTS
    """How the improved initialisation scales the scores to average 1."""

    dropout: Share = 0.0
    """Share of entries dropped from a layer's output."""

    auxiliary_weight: Annotated[float, Between(0, 1000, "no such loss")] = 1e-3
    """Weight [alpha] of the loss on the core's lesser singular values (paper Table 5)."""

    auxiliary_margin: Annotated[float, Between(0, 1000)] = 0.15
    """Singular values up to this [tau] cost nothing (paper Table 5)."""

    shuffle_seed: Annotated[int, Between(0, 2**32 - 1)] = 0
    """Seed of the bijection between virtual slots and (row, block)."""

    partition: PartitionName = PartitionName.AUTO
    """How tables are split over the ``mem`` group."""

    parallel_size: str = "auto"
    """Ranks that share one copy of each table [P]: a number, or ``auto``."""

    placement: GroupPlacement = GroupPlacement.AUTO
    """Which ranks share a copy: ``packed`` (neighbours), ``spread`` (far apart) or ``auto``."""

    node_size: str = "auto"
    """``grid``: ranks that count as one node and split the columns [L]: a number that divides ``parallel_size``, or
    ``auto`` for those that the cluster has in a node."""

    overlap: bool = True
    """Lookups run beside the dense blocks of their span. The results are the same to the bit; only waiting differs."""

    def __post_init__(self) -> None:
        require_ranges("memory", self)
        self._check_sizes_of_groups()
        if self.variant is VariantName.NONE:
            return
        if self.variant is not VariantName.PKM:
            self._check_cores()
        if self.heads % self.heads_per_query:
            raise ConfigError(
                f"memory.heads = {self.heads} must be a multiple of memory.heads_per_query = {self.heads_per_query}, "
                f"because so many heads share a query; set heads to {self.heads + -self.heads % self.heads_per_query}, "
                "or heads_per_query to 1 for a query of each head's own"
            )
        self._check_table()
        self._check_choice()
        if self.dropout == 1:
            raise ConfigError("memory.dropout = 1.0 must be 0 (none) or a share below 1")
        self._check_place()

    def _check_cores(self) -> None:
        if self.tucker_rank < 1:
            raise ConfigError(
                f"memory.tucker_rank = {self.tucker_rank} must be at least 1: a score is a sum over pairs of ranks; "
                "set it to 2, the paper's, or choose memory.variant = pkm, which has no core"
            )
        if self.key_layout is KeyLayout.SPLIT:
            require_divides("memory.tucker_rank", self.tucker_rank, "memory.key_dim", self.key_dim)
        require_divides("memory.cores", self.cores, "memory.value_dim", self.value_dim)

    def _check_table(self) -> None:
        side = math.isqrt(self.expansion)
        if side * side != self.expansion:
            raise ConfigError(
                f"memory.expansion = {self.expansion} is not a square, and row and column keys grow by its "
                f"root each; the nearest squares are {side**2} and {(side + 1) ** 2}"
            )
        if self.keys_per_side < 2:
            raise ConfigError(
                f"memory.keys_per_side = {self.keys_per_side} must be at least 2: with one key a side there is nothing "
                "to choose"
            )
        if self.variant is VariantName.ULTRAMEM_V2:
            require_positive("memory.pre_value_dim", self.pre_value_dim)
        elif self.pre_value_dim:
            raise ConfigError(
                f"memory.pre_value_dim = {self.pre_value_dim} needs memory.variant = ultramem_v2, not {self.variant}; "
                "set it to 0"
            )

    def _check_choice(self) -> None:
        if self.candidates > self.grid_side:
            name = "side_top_m" if self.side_top_m else "top_m"
            raise ConfigError(
                f"memory.{name} = {self.candidates} exceeds the {self.grid_side} row keys of a head (sqrt(expansion) x "
                f"keys_per_side), of which so many are picked first; lower {name} or raise memory.keys_per_side"
                + ("" if self.side_top_m else ", or set memory.side_top_m")
            )
        if self.candidates**2 < self.top_m:
            raise ConfigError(
                f"memory.side_top_m = {self.side_top_m} gives {self.candidates**2} pairs of a row and a column, fewer "
                f"than memory.top_m = {self.top_m} that are chosen from them; set side_top_m to at least "
                f"{math.isqrt(self.top_m - 1) + 1}, or to 0 for top_m"
            )
        if self.top_m >= self.grid_side**2:
            raise ConfigError(
                f"memory.top_m = {self.top_m} takes every slot of a head, {self.grid_side} x {self.grid_side}, which "
                "leaves nothing to choose; lower top_m or raise memory.keys_per_side"
            )
        if self.score_gain is ScoreGain.ONE_SIDE and self.candidates >= self.grid_side:
            raise ConfigError(
                f"memory.score_gain = one_side divides by the mean of the best {self.candidates} of "
                f"{self.grid_side} scores, which is 0 when all are taken; lower memory.top_m, or use products"
            )

    def _check_place(self) -> None:
        if not self.spans:
            raise ConfigError(
                f"memory.spans is empty though memory.variant = {self.variant}; say where the layers sit, "
                'for instance memory.spans="1:2/3:4"'
            )
        parse_spans(self.spans)

    def _check_sizes_of_groups(self) -> None:
        for name in ("parallel_size", "node_size"):
            value = getattr(self, name)
            if value != "auto" and not _COUNT.fullmatch(value):
                raise ConfigError(f"memory.{name} = {value[:40]} must be auto or a number of ranks from 1 to 999999")

    @property
    def span_list(self) -> tuple[Span, ...]:
        """The spans, parsed; empty for a dense model."""
        return () if self.variant is VariantName.NONE else parse_spans(self.spans)

    @property
    def num_rows(self) -> int:
        """Physical rows of a table [N = n * n]."""
        return self.keys_per_side**2

    @property
    def grid_side(self) -> int:
        """Row keys of a head, with the expansion [sqrt(E) * n]."""
        return math.isqrt(self.expansion) * self.keys_per_side

    @property
    def candidates(self) -> int:
        """Rows (= columns) of a head among whose pairs the slots are chosen."""
        return self.side_top_m or self.top_m

    @property
    def picks(self) -> int:
        """Rows read per token and layer [K = H * m]."""
        return self.heads * self.top_m

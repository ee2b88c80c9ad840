"""The memory layers: what they are, where they sit, how their tables are split."""

import math
from dataclasses import dataclass
from enum import StrEnum

from ultramem_megatron.config.check import require_divides, require_positive
from ultramem_megatron.errors import ConfigError


class VariantName(StrEnum):
    """Which memory layer is built."""

    NONE = "none"
    PKM = "pkm"
    ULTRAMEM = "ultramem"


class PartitionName(StrEnum):
    """How a value table is split over the ``mem`` group; ``auto`` leaves the choice to the planner."""

    AUTO = "auto"
    NUMBER_WISE = "number_wise"
    DIMENSION_WISE = "dimension_wise"
    REPLICATED = "replicated"


MOST_ROWS = 2**31
"""Row numbers travel as int32 ..."""
MOST_BLOCKS = 2**8
"""... and block numbers as uint8."""


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
        try:
            read, add = (int(number) for number in part.split(":"))
        except ValueError:
            raise ConfigError(
                f'memory.spans = "{text}" is not a list of spans: "{part}" should read a:b, '
                'as in "1:2/3:4" (read at block a, add at block b, counted from 1)'
            ) from None
        if not 1 <= read <= add:
            raise ConfigError(
                f'memory.spans = "{text}": span {part} is out of range or runs backwards; '
                "blocks count from 1 and the first number must not exceed the second"
            )
        if spans and read <= spans[-1].add:
            raise ConfigError(
                f'memory.spans = "{text}": span {part} begins at or before block {spans[-1].add}, where '
                f"{spans[-1]} still runs; one result is under way at a time, so start it at {spans[-1].add + 1}"
            )
        spans.append(Span(read, add))
    return tuple(spans)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """One memory layer a span. Symbols in brackets are those of the paper (section 2.3, appendix A)."""

    variant: VariantName = VariantName.NONE
    """``none`` (dense), ``pkm`` (product keys, the ablation's start) or ``ultramem``."""

    spans: str = ""
    """Where the layers read and add: ``"a:b/c:d"``, counted from 1 as in the paper."""

    keys_per_side: int = 128
    """Physical row (= column) keys [n]. A table holds n * n rows."""

    top_m: int = 16
    """Slots kept per head and token [m]."""

    heads: int = 2
    """Key sets [H]; all read one table."""

    heads_per_query: int = 2
    """Heads that share one query (paper Table 2, "share query"); 1 gives each its own."""

    key_dim: int = 64
    """Width of a row (or column) key [Dk], over all Tucker ranks: each rank gets key_dim / tucker_rank."""

    value_dim: int = 64
    """Stored width of a table row [Dv]."""

    tucker_rank: int = 2
    """Rank of the Tucker core [r] (TDQKR). ``pkm`` ignores it."""

    cores: int = 2
    """Score cores [h] (MCS); core i weighs the i-th slice of the value dimension."""

    expansion: int = 4
    """Virtual blocks [E] (IVE); a square, because row and column keys grow by sqrt(E) each."""

    query_conv_kernel: int = 5
    """Taps of the causal depthwise convolution before the query projection; 0 for none. The paper does not
    state it; 5 fits the parameter and FLOP differences of its Table 2."""

    normalize_keys: bool = True
    """Norm on queries and keys (paper Table 2, "q/k LN")."""

    score_gain: ScoreGain = ScoreGain.PRODUCTS
    """How the initial scores are scaled to average 1."""

    auxiliary_weight: float = 1e-3
    """Weight [alpha] of the loss on the core's lesser singular values (paper Table 5)."""

    auxiliary_margin: float = 0.15
    """Singular values up to this [tau] cost nothing (paper Table 5)."""

    shuffle_seed: int = 0
    """Seed of the bijection between virtual slots and (row, block)."""

    partition: PartitionName = PartitionName.AUTO
    """How tables are split over the ``mem`` group."""

    parallel_size: str = "auto"
    """Ranks that share one copy of each table [P]: a number, or ``auto``."""

    def __post_init__(self) -> None:
        if self.variant is VariantName.NONE:
            return
        for name in ("keys_per_side", "top_m", "heads", "heads_per_query", "key_dim", "value_dim"):
            require_positive(f"memory.{name}", getattr(self, name))
        for name in ("tucker_rank", "cores", "expansion"):
            require_positive(f"memory.{name}", getattr(self, name))
        side = math.isqrt(self.expansion)
        if side * side != self.expansion:
            raise ConfigError(
                f"memory.expansion = {self.expansion} is not a square, and row and column keys grow by its "
                f"root each; the nearest squares are {side**2} and {(side + 1) ** 2}"
            )
        if self.expansion > MOST_BLOCKS:
            raise ConfigError(f"memory.expansion = {self.expansion} exceeds {MOST_BLOCKS}, the most that fit one byte")
        if self.num_rows > MOST_ROWS:
            raise ConfigError(
                f"memory.keys_per_side = {self.keys_per_side} makes a table of {self.num_rows} rows, and rows are "
                f"numbered with 31 bits; set it to at most {math.isqrt(MOST_ROWS)}"
            )
        if self.shuffle_seed < 0:
            raise ConfigError(f"memory.shuffle_seed = {self.shuffle_seed} must not be negative")
        if self.top_m > self.keys_per_side:
            raise ConfigError(
                f"memory.top_m = {self.top_m} exceeds memory.keys_per_side = {self.keys_per_side}, and a head "
                "first picks top_m of the row keys; lower top_m or raise keys_per_side"
            )
        if self.keys_per_side < 2:
            raise ConfigError(
                f"memory.keys_per_side = {self.keys_per_side} must be at least 2: with one key a side there is nothing "
                "to choose"
            )
        if self.score_gain == ScoreGain.ONE_SIDE and self.top_m >= self.grid_side:
            raise ConfigError(
                f"memory.score_gain = one_side divides by the mean of the best memory.top_m = {self.top_m} of "
                f"{self.grid_side} scores, which is 0 when all are taken; lower top_m, or use products"
            )
        require_divides("memory.tucker_rank", self.tucker_rank, "memory.key_dim", self.key_dim)
        require_divides("memory.cores", self.cores, "memory.value_dim", self.value_dim)
        require_divides("memory.heads_per_query", self.heads_per_query, "memory.heads", self.heads)
        if self.query_conv_kernel < 0:
            raise ConfigError(
                f"memory.query_conv_kernel = {self.query_conv_kernel} must be 0 (none) or a number of taps"
            )
        if self.auxiliary_weight < 0 or self.auxiliary_margin < 0:
            raise ConfigError(
                f"memory.auxiliary_weight = {self.auxiliary_weight} and memory.auxiliary_margin = "
                f"{self.auxiliary_margin} must not be negative; 0 switches the loss off"
            )
        if not self.spans:
            raise ConfigError(
                f"memory.spans is empty though memory.variant = {self.variant}; say where the layers sit, "
                'for instance memory.spans="1:2/3:4"'
            )
        parse_spans(self.spans)
        if self.parallel_size != "auto" and (not self.parallel_size.isdecimal() or int(self.parallel_size) < 1):
            raise ConfigError(f"memory.parallel_size = {self.parallel_size} must be auto or a number of ranks from 1")

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
    def picks(self) -> int:
        """Rows read per token and layer [K = H * m]."""
        return self.heads * self.top_m

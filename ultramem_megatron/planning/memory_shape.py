"""Sizes of one memory layer, as its variant uses the config's fields: what is built, counted and sent."""

from dataclasses import dataclass

from ultramem_megatron.config.memory import KeyLayout, VariantName
from ultramem_megatron.config.run import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryShape:
    """One memory layer; symbols in brackets are those of the paper."""

    hidden: int
    """Width of the residual stream [D]."""

    heads: int
    """Key sets [H]."""

    heads_per_query: int
    """Heads that share a query."""

    grid_side: int
    """Row (= column) keys of a head, with the expansion [sqrt(E) * n]."""

    candidates: int
    """Row (= column) keys of a head that are kept at first."""

    top_m: int
    """Slots that are kept at last [m]."""

    tucker_rank: int
    """Rank of the Tucker core [r]; 0 without one."""

    rank_width: int
    """Channels of the key of one rank; of the whole key without a core."""

    query_ranks: int
    """Ranks that have channels of the query to themselves; 1 when all read the same."""

    cores: int
    """Scores of a pick [h]."""

    expansion: int
    """Virtual slots of a physical row [E]."""

    blocks: int
    """Vectors that a token's rows are pooled into: E, or 1 where they all go into one."""

    num_rows: int
    """Physical rows of a table [N]."""

    value_dim: int
    """Width of a row [Dv]."""

    pre_value_dim: int
    """Width of a row of the second table, whose inner products weigh the picks [Dp]; 0 without one."""

    normalize: bool
    """Norms on queries and keys."""

    conv_kernel: int
    """Taps of the convolution before the query projection; 0 without."""

    @property
    def ranks(self) -> int:
        """Components of a side's score: the Tucker rank, or 1."""
        return max(self.tucker_rank, 1)

    @property
    def queries(self) -> int:
        """Distinct queries of a token, each with a row and a column half."""
        return self.heads // self.heads_per_query

    @property
    def query_width(self) -> int:
        """Channels of a row (or column) query."""
        return self.query_ranks * self.rank_width

    @property
    def projected(self) -> bool:
        """Whether a projection leads from the pooled vectors to the residual stream: a single one that is as wide as
        the stream goes there as it is, but in UltraMemV2."""
        return self.blocks > 1 or self.value_dim != self.hidden or self.pre_value_dim > 0

    @property
    def picks(self) -> int:
        """Rows read per token [H * m]."""
        return self.heads * self.top_m


def memory_shape(config: RunConfig) -> MemoryShape:
    """The sizes that the layers of ``config`` have; those of a dense model are of no use, but harmless."""
    memory = config.memory
    has_core = memory.variant not in (VariantName.NONE, VariantName.PKM)
    split = has_core and memory.key_layout is KeyLayout.SPLIT
    return MemoryShape(
        hidden=config.model.hidden,
        heads=memory.heads,
        heads_per_query=memory.heads_per_query,
        grid_side=memory.grid_side,
        candidates=memory.candidates,
        top_m=memory.top_m,
        tucker_rank=memory.tucker_rank if has_core else 0,
        rank_width=memory.key_dim // memory.tucker_rank if split else memory.key_dim,
        query_ranks=memory.tucker_rank if has_core and memory.key_layout is not KeyLayout.FULL else 1,
        cores=memory.cores if has_core else 1,
        expansion=memory.expansion,
        blocks=1 if memory.variant is VariantName.ULTRAMEM_V2 else memory.expansion,
        num_rows=memory.num_rows,
        value_dim=memory.value_dim,
        pre_value_dim=memory.pre_value_dim,
        normalize=memory.normalize_keys,
        conv_kernel=memory.query_conv_kernel,
    )

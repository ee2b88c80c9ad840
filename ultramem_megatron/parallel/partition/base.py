"""What every partition of a value table offers, and the local pieces they share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ultramem_megatron.parallel.channel import Channel
from ultramem_megatron.parallel.underway import finish

# Letters: N rows of the table, V value dimension, n and v this rank's share of them, T tokens on this rank,
#          K picks per token, E blocks, h score cores, P ranks of the ``mem`` group.


@dataclass(frozen=True, kw_only=True, slots=True)
class TableShape:
    """One logical value table and how it is read."""

    num_rows: int
    """Physical rows N."""

    value_dim: int
    """Width V of a row."""

    blocks: int = 1
    """Virtual blocks E: a token's picks are pooled for each on their own (IVE)."""

    cores: int = 1
    """Score cores h: core i weighs the i-th of h equal slices of V (MCS)."""


@dataclass(frozen=True, slots=True)
class Picks:
    """What retrieval found for the tokens of this rank."""

    rows_TK: Tensor
    """int32 physical rows, in [0, N). A row may occur twice for one token."""

    blocks_TK: Tensor
    """uint8 virtual block of each pick, in [0, E)."""

    scores_hTK: Tensor
    """Weight of each pick, one for each core."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The rectangle of the logical table that a rank holds: rows and columns, ends excluded."""

    rows: range
    columns: range

    @property
    def shape(self) -> tuple[int, int]:
        """Size of the local parameter [n, v]."""
        return len(self.rows), len(self.columns)


class ValuePartition(ABC):
    """How one value table is split over the ``mem`` group. It offers two operations, the lookup and the inner products.

    The three phases of a lookup are ``dispatch``, ``lookup``, ``combine``; those of the inner products have the same
    names with ``_products`` after them. Only the outer two communicate: they are coroutines (``underway.py``), and
    where they ``await``, what they have begun travels while their owner does something else.
    """

    waits: ClassVar[int] = 0
    """How often a lookup awaits something, and inner products as often: over so many stretches of other work either can
    be spread."""

    def __init__(self, table: TableShape, channel: Channel) -> None:
        self.table = table
        self.channel = channel

    @abstractmethod
    def shard(self, rank: int) -> Shard:
        """What ``rank`` of the ``mem`` group holds. No communication."""

    @abstractmethod
    async def dispatch(self, picks: Picks, tokens: Sequence[int]) -> Any:
        """Bring the picks to where their rows can be read. Collective over ``mem``.

        Args:
            picks: Of the tokens of this rank.
            tokens: Tokens of every rank of the group; the ranks may differ, and may have none.
        """

    @abstractmethod
    def lookup(self, shard_nv: Tensor, dispatched: Any) -> Tensor:
        """Read this rank's part of the rows. No communication."""

    @abstractmethod
    async def combine(self, found: Tensor, dispatched: Any) -> Tensor:
        """Bring the results home and pool them. Collective over ``mem``.

        Returns:
            pooled_TEV in the type of the table: for each token and block, the sum of the picked rows
            times their scores.
        """

    @abstractmethod
    async def dispatch_products(self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]) -> Any:
        """Bring row numbers and vectors to where they meet the rows. Collective over ``mem``."""

    @abstractmethod
    def lookup_products(self, shard_nv: Tensor, dispatched: Any) -> Tensor:
        """Read this rank's part of the rows, and multiply those whose vectors are here. No communication."""

    @abstractmethod
    async def combine_products(self, found: Tensor, dispatched: Any) -> Tensor:
        """Bring the results home. Collective over ``mem``."""

    async def look_up(self, shard_nv: Tensor, picks: Picks, tokens: Sequence[int]) -> Tensor:
        """The whole lookup; arguments as of ``dispatch``, result as of ``combine``."""
        dispatched = await self.dispatch(picks, tokens)
        with self.channel.timeline.phase("lookup"):
            found = self.lookup(shard_nv, dispatched)
        return await self.combine(found, dispatched)

    async def multiply(self, shard_nv: Tensor, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]) -> Tensor:
        """For each pick the inner product of its row with its token's vector. Collective.

        UltraMemV2's pre-values are such a table (arXiv 2508.18756, eq. 15). Blocks and cores play no part.

        Args:
            shard_nv: This rank's shard.
            rows_TK: int32 rows, in [0, N), of the tokens of this rank. A row may occur twice for one token.
            vectors_TV: The vectors of these tokens, in the type of the table: so they travel.
            tokens: Tokens of every rank of the group; the ranks may differ, and may have none.

        Returns:
            products_TK, multiplied and summed in fp32 and left so. Differentiable in shard and vectors.
        """
        dispatched = await self.dispatch_products(rows_TK, vectors_TV, tokens)
        with self.channel.timeline.phase("lookup of products"):
            found = self.lookup_products(shard_nv, dispatched)
        return await self.combine_products(found, dispatched)

    def __call__(self, shard_nv: Tensor, picks: Picks, tokens: Sequence[int]) -> Tensor:
        """``look_up``, with nothing in between."""
        return finish(self.look_up(shard_nv, picks, tokens))

    def inner_products(self, shard_nv: Tensor, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]) -> Tensor:
        """``multiply``, with nothing in between."""
        return finish(self.multiply(shard_nv, rows_TK, vectors_TV, tokens))


def even_range(total: int, parts: int, index: int) -> range:
    """The ``index``-th of ``parts`` nearly equal pieces of ``range(total)``."""
    return range(index * total // parts, (index + 1) * total // parts)

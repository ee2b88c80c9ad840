"""Dimension-wise partition: each rank of the ``mem`` group holds some columns of all rows (paper Fig. 8b;
TorchRec: column-wise).

Picks and scores of all tokens travel to every rank, each pools its columns, and the pieces travel home. For inner
products, each rank gets its columns of all vectors, and the partial products are summed at home. Shapes are static
and the load is even, however skewed the picks are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ultramem_megatron.parallel.collectives import (
    begin_all_gather_tokens,
    begin_all_to_all,
    begin_reduce_scatter_tokens,
)
from ultramem_megatron.parallel.exchange import Exchange, Together
from ultramem_megatron.parallel.partition.base import Picks, Shard, ValuePartition, even_range
from ultramem_megatron.parallel.partition.pooling import multiply_rows, pool_rows
from ultramem_megatron.parallel.partition.row_plan import PlanAhead, plan_gradients

# Letters: P ranks of the group, T tokens on this rank, G tokens in the group, v = V / P columns of this rank.


@dataclass(frozen=True, slots=True)
class GatheredPicks:
    """The picks of the whole group."""

    rows_GK: Tensor
    """int32, and uint8 blocks: five bytes an address."""
    blocks_GK: Tensor
    scores_hGK: Tensor
    """fp32, so that their gradients, sums over the columns, are not rounded before all ranks' parts are added."""
    tokens: list[int]
    """Tokens of each rank."""
    plan: PlanAhead | None = None
    """Of the rows, once it is known in which table this rank looks them up."""


@dataclass(frozen=True, slots=True)
class GatheredVectors:
    """Whose inner products this rank computes, over its columns."""

    rows_GK: Tensor
    vectors_Gv: Tensor
    tokens: list[int]
    """Tokens of each rank."""
    plan: PlanAhead | None = None
    """As of ``GatheredPicks``."""


class DimensionWise(ValuePartition):
    """Columns split over the group; P must divide the value dimension."""

    waits = 2  # picks and scores there, pieces back

    def shard(self, rank: int) -> Shard:
        assert self.table.value_dim % self.channel.size == 0, "the planner offers only divisors of value_dim"
        return Shard(range(self.table.num_rows), even_range(self.table.value_dim, self.channel.size, rank))

    async def dispatch(self, picks: Picks, tokens: Sequence[int]) -> GatheredPicks:
        gathered = await self.gather(picks, tokens)
        return replace(gathered, plan=plan_gradients(gathered.rows_GK, self.table.num_rows))

    async def gather(self, picks: Picks, tokens: Sequence[int]) -> GatheredPicks:
        """The picks of all ranks, for whoever looks them up. Collective."""
        # with one block there is nothing to tell
        blocks = [self._gather(picks.blocks_TK, tokens, "blocks")] if self.table.blocks > 1 else []
        rows_GK, scores_GhK, *given = await Together(
            self._gather(picks.rows_TK, tokens, "row numbers"),
            self._gather(picks.scores_hTK.transpose(0, 1), tokens, "scores"),
            *blocks,
        )
        blocks_GK = given[0] if given else torch.zeros_like(rows_GK, dtype=torch.uint8)
        return GatheredPicks(rows_GK, blocks_GK, scores_GhK.transpose(0, 1), list(tokens))

    def lookup(self, shard_nv: Tensor, dispatched: GatheredPicks) -> Tensor:
        columns = self.shard(self.channel.rank).columns
        return pool_rows(
            shard_nv,
            dispatched.rows_GK,
            dispatched.blocks_GK,
            dispatched.scores_hGK,
            self.table.blocks,
            columns,
            self.table.value_dim,
            dispatched.plan,
        )

    async def combine(self, found: Tensor, dispatched: GatheredPicks) -> Tensor:
        ranks, mine = self.channel.size, dispatched.tokens[self.channel.rank]
        pieces = await begin_all_to_all(found, dispatched.tokens, [mine] * ranks, self.channel, "pieces")
        # no -1: it is ambiguous on a rank without tokens
        pieces_PTEv = pieces.view(ranks, mine, self.table.blocks, self.table.value_dim // ranks)
        return pieces_PTEv.permute(1, 2, 0, 3).reshape(mine, self.table.blocks, self.table.value_dim)

    async def dispatch_products(self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]) -> GatheredVectors:
        gathered = await self.gather_vectors(rows_TK, vectors_TV, tokens)
        return replace(gathered, plan=plan_gradients(gathered.rows_GK, self.table.num_rows))

    async def gather_vectors(self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]) -> GatheredVectors:
        """The picks of all ranks with this rank's columns of their vectors. Collective."""
        ranks, mine = self.channel.size, tokens[self.channel.rank]
        width = self.table.value_dim // ranks
        slices_PTv = vectors_TV.reshape(mine, ranks, width).transpose(0, 1)
        slices = slices_PTv.reshape(ranks * mine, width)
        rows_GK, vectors_Gv = await Together(
            self._gather(rows_TK, tokens, "row numbers"),
            begin_all_to_all(slices, [mine] * ranks, tokens, self.channel, "vectors"),
        )
        return GatheredVectors(rows_GK, vectors_Gv, list(tokens))

    def lookup_products(self, shard_nv: Tensor, dispatched: GatheredVectors) -> Tensor:
        return multiply_rows(shard_nv, dispatched.rows_GK, dispatched.vectors_Gv, dispatched.plan)

    async def combine_products(self, found: Tensor, dispatched: GatheredVectors) -> Tensor:
        return await begin_reduce_scatter_tokens(found, dispatched.tokens, self.channel, "partial products")

    def _gather(self, x: Tensor, tokens: Sequence[int], name: str) -> Exchange:
        return begin_all_gather_tokens(x, tokens, self.channel, name)

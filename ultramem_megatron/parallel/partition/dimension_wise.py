"""Dimension-wise partition: each rank of the ``mem`` group holds some columns of all rows (paper Fig. 8b;
TorchRec: column-wise).

Picks and scores of all tokens travel to every rank, each pools its columns, and the pieces travel home. For inner
products, each rank gets its columns of all vectors, and the partial products are summed at home. Shapes are static
and the load is even, however skewed the picks are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_megatron.parallel.collectives import all_gather_tokens, all_to_all, reduce_scatter_tokens
from ultramem_megatron.parallel.partition.base import Picks, Shard, ValuePartition, even_range
from ultramem_megatron.parallel.partition.pooling import multiply_rows, pool_rows

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


@dataclass(frozen=True, slots=True)
class GatheredVectors:
    """Whose inner products this rank computes, over its columns."""

    rows_GK: Tensor
    vectors_Gv: Tensor
    tokens: list[int]
    """Tokens of each rank."""


class DimensionWise(ValuePartition):
    """Columns split over the group; P must divide the value dimension."""

    def shard(self, rank: int) -> Shard:
        assert self.table.value_dim % self.channel.size == 0, "the planner offers only divisors of value_dim"
        return Shard(range(self.table.num_rows), even_range(self.table.value_dim, self.channel.size, rank))

    def dispatch(self, picks: Picks, tokens: Sequence[int]) -> GatheredPicks:
        gather = lambda x: all_gather_tokens(x, tokens, self.channel)  # noqa: E731
        rows_GK = gather(picks.rows_TK)
        # with one block there is nothing to tell
        blocks_GK = gather(picks.blocks_TK) if self.table.blocks > 1 else torch.zeros_like(rows_GK, dtype=torch.uint8)
        scores_GhK = gather(picks.scores_hTK.transpose(0, 1))
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
        )

    def combine(self, found: Tensor, dispatched: GatheredPicks) -> Tensor:
        ranks, mine = self.channel.size, dispatched.tokens[self.channel.rank]
        pieces = all_to_all(found, dispatched.tokens, [mine] * ranks, self.channel)
        # no -1: it is ambiguous on a rank without tokens
        pieces_PTEv = pieces.view(ranks, mine, self.table.blocks, self.table.value_dim // ranks)
        return pieces_PTEv.permute(1, 2, 0, 3).reshape(mine, self.table.blocks, self.table.value_dim)

    def dispatch_products(self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]) -> GatheredVectors:
        rows_GK = all_gather_tokens(rows_TK, tokens, self.channel)
        ranks, mine = self.channel.size, tokens[self.channel.rank]
        width = self.table.value_dim // ranks
        slices_PTv = vectors_TV.reshape(mine, ranks, width).transpose(0, 1)
        slices = slices_PTv.reshape(ranks * mine, width)
        return GatheredVectors(rows_GK, all_to_all(slices, [mine] * ranks, tokens, self.channel), list(tokens))

    def lookup_products(self, shard_nv: Tensor, dispatched: GatheredVectors) -> Tensor:
        return multiply_rows(shard_nv, dispatched.rows_GK, dispatched.vectors_Gv)

    def combine_products(self, found: Tensor, dispatched: GatheredVectors) -> Tensor:
        return reduce_scatter_tokens(found, dispatched.tokens, self.channel)

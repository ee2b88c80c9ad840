"""Grid partition: the ranks of a node split the columns, the nodes split the rows.

Inside a node it is dimension-wise: picks and scores of the node's tokens travel to all of its ranks, each pools its
columns, and the pieces travel home. Between nodes it is number-wise, among the ranks of equal place: each fetches its
columns of the distinct rows that the node's tokens pick. So a row comes to a node once, however many of its ranks need
it, and what leaves the node is split evenly over them. Backward mirrors this.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ultramem_megatron.parallel.partition.base import Picks, Shard, ValuePartition
from ultramem_megatron.parallel.partition.dimension_wise import DimensionWise, GatheredPicks, GatheredVectors
from ultramem_megatron.parallel.partition.number_wise import NumberWise, RowRequests

# Letters: P ranks of the group, L of them in a node, T tokens of a rank, G of a node, K picks per token, v = V / L
#          columns of this rank, U distinct rows among the picks of the node.


class Grid(ValuePartition):
    """Columns split inside a node, whose L ranks must divide the value dimension; rows split between nodes."""

    waits = DimensionWise.waits + NumberWise.waits

    @property
    def columns(self) -> DimensionWise:
        """The table over the ranks of this node."""
        return DimensionWise(self.table, self.channel.inside)

    @property
    def rows(self) -> NumberWise:
        """The table over the ranks of this place in all nodes."""
        return NumberWise(self.table, self.channel.across)

    def shard(self, rank: int) -> Shard:
        node, place = divmod(rank, self.columns.channel.size)
        return Shard(self.rows.shard(node).rows, self.columns.shard(place).columns)

    async def dispatch(self, picks: Picks, tokens: Sequence[int]) -> RowRequests[GatheredPicks]:
        gathered = await self.columns.gather(picks, self._of_node(tokens))
        return await self.rows.request(gathered.rows_GK, gathered)

    def lookup(self, shard_nv: Tensor, dispatched: RowRequests[GatheredPicks]) -> Tensor:
        return self.rows.lookup(shard_nv, dispatched)

    async def combine(self, found: Tensor, dispatched: RowRequests[GatheredPicks]) -> Tensor:
        rows_Uv = await self.rows.send_back(found, dispatched)
        # these rows are to the node what all rows are to a group that is split dimension-wise
        here = replace(dispatched.home, rows_GK=dispatched.place_TK, plan=dispatched.plan)
        return await self.columns.combine(self.columns.lookup(rows_Uv, here), here)

    async def dispatch_products(
        self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]
    ) -> RowRequests[GatheredVectors]:
        gathered = await self.columns.gather_vectors(rows_TK, vectors_TV, self._of_node(tokens))
        return await self.rows.request(gathered.rows_GK, gathered)

    def lookup_products(self, shard_nv: Tensor, dispatched: RowRequests[GatheredVectors]) -> Tensor:
        return self.rows.lookup_products(shard_nv, dispatched)

    async def combine_products(self, found: Tensor, dispatched: RowRequests[GatheredVectors]) -> Tensor:
        rows_Uv = await self.rows.send_back(found, dispatched)
        here = replace(dispatched.home, rows_GK=dispatched.place_TK, plan=dispatched.plan)
        return await self.columns.combine_products(self.columns.lookup_products(rows_Uv, here), here)

    def _of_node(self, tokens: Sequence[int]) -> Sequence[int]:
        """Of the tokens of every rank of the group, those of this node's."""
        size = self.columns.channel.size
        first = self.channel.rank // size * size
        return tokens[first : first + size]

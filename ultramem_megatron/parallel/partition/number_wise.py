"""Number-wise partition: each rank of the ``mem`` group holds whole rows (paper Fig. 8a; TorchRec: row-wise).

Row numbers travel to the owners of the rows, the rows travel back, and each rank pools or multiplies them for its own
tokens. A rank asks for a row once, however many of its tokens pick it; backward, the gradients of these picks are
summed in fp32 before they travel as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from ultramem_megatron.parallel.collectives import begin_all_to_all
from ultramem_megatron.parallel.exchange import Exchange
from ultramem_megatron.parallel.host_numbers import SizesUnderWay
from ultramem_megatron.parallel.partition.base import Picks, Shard, ValuePartition, even_range
from ultramem_megatron.parallel.partition.distinct import distinct_rows
from ultramem_megatron.parallel.partition.pooling import multiply_rows, pool, read_rows

# Letters: P ranks of the group, T tokens of this rank, K picks per token, U distinct rows among them, A rows that are
#          asked of this rank.

Home = TypeVar("Home")


@dataclass(frozen=True, slots=True)
class RowRequests(Generic[Home]):
    """Which rows come for the picks of this rank, and what the ranks ask for."""

    home: Home
    """What waits here for the rows: the picks of a lookup, the vectors of inner products."""
    place_TK: Tensor
    """Place of each pick's row among those that come back."""
    asked_A: Tensor
    """int32 local row numbers asked of this rank, by asking rank."""
    sent: list[int]
    """Rows requested of each rank."""
    asked: list[int]
    """Rows that each rank requests."""


class NumberWise(ValuePartition):
    """Rows split over the group."""

    waits = 3  # how many rows, which rows, the rows

    def shard(self, rank: int) -> Shard:
        return Shard(even_range(self.table.num_rows, self.channel.size, rank), range(self.table.value_dim))

    async def dispatch(self, picks: Picks, tokens: Sequence[int]) -> RowRequests[Picks]:
        return await self.request(picks.rows_TK, picks)

    def lookup(self, shard_nv: Tensor, dispatched: RowRequests[Any]) -> Tensor:
        return read_rows(shard_nv, dispatched.asked_A)

    async def combine(self, found: Tensor, dispatched: RowRequests[Picks]) -> Tensor:
        # not by indexing, whose gradient would be summed in the type of the rows
        rows_TKV = read_rows(await self.send_back(found, dispatched), dispatched.place_TK)
        picks, value_dim = dispatched.home, self.table.value_dim
        return pool(rows_TKV, picks.blocks_TK, picks.scores_hTK, self.table.blocks, range(value_dim), value_dim)

    async def dispatch_products(
        self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]
    ) -> RowRequests[Tensor]:
        return await self.request(rows_TK, vectors_TV)

    def lookup_products(self, shard_nv: Tensor, dispatched: RowRequests[Any]) -> Tensor:
        return self.lookup(shard_nv, dispatched)

    async def combine_products(self, found: Tensor, dispatched: RowRequests[Tensor]) -> Tensor:
        return multiply_rows(await self.send_back(found, dispatched), dispatched.place_TK, dispatched.home)

    async def request(self, rows_TK: Tensor, home: Home) -> RowRequests[Home]:
        """Ask the owners of these rows for each once. Collective."""
        distinct = distinct_rows(rows_TK, self.table.num_rows, self.channel.size)
        sent, asked = await SizesUnderWay(distinct.counts_P, self.channel)  # the operation's one wait for the device
        self.channel.traffic.served_requests += sum(asked)
        asked_A = await begin_all_to_all(distinct.rows_R[: sum(sent)], sent, asked, self.channel, "row numbers")
        asked_A = asked_A - self.shard(self.channel.rank).rows.start
        return RowRequests(home, distinct.place_TK, asked_A, sent, asked)

    def send_back(self, found: Tensor, requests: RowRequests[Any]) -> Exchange:
        """[U, V], the rows that this rank asked for, in ascending order."""
        return begin_all_to_all(found, requests.asked, requests.sent, self.channel, "rows")

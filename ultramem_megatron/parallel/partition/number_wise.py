"""Number-wise partition: each rank of the ``mem`` group holds whole rows (paper Fig. 8a; TorchRec: row-wise).

Row numbers travel to the owners of the rows, the rows travel back, and each rank pools or multiplies them for its own
tokens. A rank asks for a row once, however many of its tokens pick it; backward, the gradients of these picks are
summed in fp32 before they travel as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from ultramem_kernels.index_plan import sort_picks
from ultramem_megatron.parallel.beside import Beside
from ultramem_megatron.parallel.collectives import begin_all_to_all
from ultramem_megatron.parallel.exchange import Exchange
from ultramem_megatron.parallel.host_numbers import SizesUnderWay
from ultramem_megatron.parallel.partition.base import Picks, Shard, ValuePartition, even_range
from ultramem_megatron.parallel.partition.distinct import distinct_rows
from ultramem_megatron.parallel.partition.pooling import multiply_rows, pool_rows, read_rows
from ultramem_megatron.parallel.partition.row_plan import PlanAhead, gradients_need_plan, plan_by_place, plan_gradients

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
    plan: PlanAhead | None
    """Of these places."""
    asked_A: Tensor
    """int32 local row numbers asked of this rank, by asking rank."""
    asked_plan: PlanAhead | None
    """Of the rows asked."""
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
        return read_rows(shard_nv, dispatched.asked_A, dispatched.asked_plan)

    async def combine(self, found: Tensor, dispatched: RowRequests[Picks]) -> Tensor:
        rows_UV = await self.send_back(found, dispatched)
        picks, value_dim = dispatched.home, self.table.value_dim
        return pool_rows(
            rows_UV,
            dispatched.place_TK,
            picks.blocks_TK,
            picks.scores_hTK,
            self.table.blocks,
            range(value_dim),
            value_dim,
            dispatched.plan,
        )

    async def dispatch_products(
        self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]
    ) -> RowRequests[Tensor]:
        return await self.request(rows_TK, vectors_TV)

    def lookup_products(self, shard_nv: Tensor, dispatched: RowRequests[Any]) -> Tensor:
        return self.lookup(shard_nv, dispatched)

    async def combine_products(self, found: Tensor, dispatched: RowRequests[Tensor]) -> Tensor:
        rows_UV = await self.send_back(found, dispatched)
        return multiply_rows(rows_UV, dispatched.place_TK, dispatched.home, dispatched.plan)

    async def request(self, rows_TK: Tensor, home: Home) -> RowRequests[Home]:
        """Ask the owners of these rows for each once. Collective."""
        with Beside(rows_TK) as work:
            picks = sort_picks(rows_TK.reshape(-1))
            distinct = distinct_rows(picks, rows_TK.shape, self.table.num_rows, self.channel.size)
            sizes = SizesUnderWay(distinct.counts_P, self.channel)
            plan = plan_by_place(picks, self.table.num_rows, work) if gradients_need_plan(rows_TK) else None
        sent, asked = await sizes  # the operation's one wait for the device
        work.join(distinct.rows_R, distinct.place_TK)
        self.channel.traffic.served_requests += sum(asked)
        asked_A = await begin_all_to_all(distinct.rows_R[: sum(sent)], sent, asked, self.channel, "row numbers")
        own = self.shard(self.channel.rank).rows
        asked_A = asked_A - own.start
        return RowRequests(home, distinct.place_TK, plan, asked_A, plan_gradients(asked_A, len(own)), sent, asked)

    def send_back(self, found: Tensor, requests: RowRequests[Any]) -> Exchange:
        """[U, V], the rows that this rank asked for, in ascending order."""
        return begin_all_to_all(found, requests.asked, requests.sent, self.channel, "rows")

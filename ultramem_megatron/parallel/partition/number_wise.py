"""Number-wise partition: each rank of the ``mem`` group holds whole rows (paper Fig. 8a; TorchRec: row-wise).

Row numbers travel to the owners of the rows, the rows travel back, and each rank pools or multiplies them for its own
tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ultramem_megatron.parallel.collectives import all_to_all, exchange_sizes
from ultramem_megatron.parallel.partition.base import Picks, Shard, ValuePartition, even_range
from ultramem_megatron.parallel.partition.pooling import multiply_rows, pool, read_rows

# Letters: P ranks of the group, T tokens and R = T * K picks of this rank, A rows that others ask of this rank.

Home = TypeVar("Home", Picks, Tensor)


@dataclass(frozen=True, slots=True)
class RowRequests(Generic[Home]):
    """Row numbers sorted by owner, and what the other ranks ask for."""

    home: Home
    """What waits here for the rows: the picks of a lookup, the vectors of inner products."""
    place_TK: Tensor
    """Place of each pick's row among those that come back."""
    asked_A: Tensor
    """int32 local row numbers asked of this rank, by asking rank."""
    sent: list[int]
    """Requests sent to each rank."""
    asked: list[int]
    """Requests received from each rank."""


class NumberWise(ValuePartition):
    """Rows split over the group."""

    def shard(self, rank: int) -> Shard:
        return Shard(even_range(self.table.num_rows, self.channel.size, rank), range(self.table.value_dim))

    def dispatch(self, picks: Picks, tokens: Sequence[int]) -> RowRequests[Picks]:
        return self._request(picks.rows_TK, picks)

    def lookup(self, shard_nv: Tensor, dispatched: RowRequests[Any]) -> Tensor:
        return read_rows(shard_nv, dispatched.asked_A)

    def combine(self, found: Tensor, dispatched: RowRequests[Picks]) -> Tensor:
        rows_TKV = self._send_back(found, dispatched)[dispatched.place_TK]
        picks, value_dim = dispatched.home, self.table.value_dim
        return pool(rows_TKV, picks.blocks_TK, picks.scores_hTK, self.table.blocks, range(value_dim), value_dim)

    def dispatch_products(self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]) -> RowRequests[Tensor]:
        return self._request(rows_TK, vectors_TV)

    def lookup_products(self, shard_nv: Tensor, dispatched: RowRequests[Any]) -> Tensor:
        return self.lookup(shard_nv, dispatched)

    def combine_products(self, found: Tensor, dispatched: RowRequests[Tensor]) -> Tensor:
        return multiply_rows(self._send_back(found, dispatched), dispatched.place_TK, dispatched.home)

    def _request(self, rows_TK: Tensor, home: Home) -> RowRequests[Home]:
        rows_R = rows_TK.reshape(-1)
        owner_R = self._owner(rows_R)
        order_R = torch.argsort(owner_R, stable=True)
        sent_P = torch.bincount(owner_R, minlength=self.channel.size)
        asked_P = exchange_sizes(sent_P, self.channel)
        sent, asked = torch.stack([sent_P, asked_P]).tolist()  # the operation's one wait for the device
        asked_A = all_to_all(rows_R[order_R], sent, asked, self.channel)
        place_TK = torch.argsort(order_R).view(rows_TK.shape)  # the inverse of a permutation
        return RowRequests(home, place_TK, asked_A - self.shard(self.channel.rank).rows.start, sent, asked)

    def _send_back(self, found: Tensor, requests: RowRequests[Any]) -> Tensor:
        """[R, V], the rows that this rank asked for, sorted by owner."""
        return all_to_all(found, requests.asked, requests.sent, self.channel)

    def _owner(self, rows_R: Tensor) -> Tensor:
        # inverse of even_range: the last rank whose first row r * N // P is not beyond the row; int64, since
        # (row + 1) * P leaves int32 at 20 M rows and 128 ranks
        return ((rows_R.long() + 1) * self.channel.size - 1) // self.table.num_rows

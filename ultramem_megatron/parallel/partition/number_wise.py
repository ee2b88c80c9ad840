"""Number-wise partition: each rank of the ``mem`` group holds whole rows (paper Fig. 8a; TorchRec: row-wise).

Row numbers travel to the owners of the rows, the rows travel back, and each rank pools for its own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_megatron.parallel.collectives import all_to_all, exchange_sizes
from ultramem_megatron.parallel.partition.base import Picks, Shard, ValuePartition, even_range
from ultramem_megatron.parallel.partition.pooling import pool, read_rows

# Letters: P ranks of the group, T tokens and R = T * K picks of this rank, A rows that others ask of this rank.


@dataclass(frozen=True, slots=True)
class RowRequests:
    """Picks sorted by owner, and what the other ranks ask for."""

    picks: Picks
    order_R: Tensor
    """Place of each sorted request among the flat picks."""
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

    def dispatch(self, picks: Picks, tokens: Sequence[int]) -> RowRequests:
        rows_R = picks.rows_TK.reshape(-1)
        owner_R = self._owner(rows_R)
        order_R = torch.argsort(owner_R, stable=True)
        sent_P = torch.bincount(owner_R, minlength=self.channel.size)
        asked_P = exchange_sizes(sent_P, self.channel)
        sent, asked = torch.stack([sent_P, asked_P]).tolist()  # the lookup's one wait for the device
        asked_A = all_to_all(rows_R[order_R], sent, asked, self.channel)
        return RowRequests(picks, order_R, asked_A - self.shard(self.channel.rank).rows.start, sent, asked)

    def lookup(self, shard_nv: Tensor, dispatched: RowRequests) -> Tensor:
        return read_rows(shard_nv, dispatched.asked_A)

    def combine(self, found: Tensor, dispatched: RowRequests) -> Tensor:
        sorted_RV = all_to_all(found, dispatched.asked, dispatched.sent, self.channel)
        home_R = torch.argsort(dispatched.order_R)  # the inverse of a permutation
        picks = dispatched.picks
        value_dim = self.table.value_dim
        rows_TKV = sorted_RV[home_R].view(*picks.rows_TK.shape, value_dim)
        return pool(rows_TKV, picks.blocks_TK, picks.scores_hTK, self.table.blocks, range(value_dim), value_dim)

    def _owner(self, rows_R: Tensor) -> Tensor:
        # inverse of even_range: the last rank whose first row r * N // P is not beyond the row; int64, since
        # (row + 1) * P leaves int32 at 20 M rows and 128 ranks
        return ((rows_R.long() + 1) * self.channel.size - 1) // self.table.num_rows

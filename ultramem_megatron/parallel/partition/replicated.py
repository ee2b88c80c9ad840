"""Replicated: every rank holds the whole table and nothing travels (P = 1). Table gradients meet over ``mem_dp``."""

from collections.abc import Sequence

from torch import Tensor

from ultramem_megatron.parallel.partition.base import Picks, Shard, ValuePartition
from ultramem_megatron.parallel.partition.pooling import multiply_rows, pool, read_rows


class Replicated(ValuePartition):
    """The unsplit table."""

    def shard(self, rank: int) -> Shard:
        return Shard(range(self.table.num_rows), range(self.table.value_dim))

    async def dispatch(self, picks: Picks, tokens: Sequence[int]) -> Picks:
        return picks

    def lookup(self, shard_nv: Tensor, dispatched: Picks) -> Tensor:
        return read_rows(shard_nv, dispatched.rows_TK)

    async def combine(self, found: Tensor, dispatched: Picks) -> Tensor:
        value_dim = self.table.value_dim
        return pool(found, dispatched.blocks_TK, dispatched.scores_hTK, self.table.blocks, range(value_dim), value_dim)

    async def dispatch_products(
        self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        return rows_TK, vectors_TV

    def lookup_products(self, shard_nv: Tensor, dispatched: tuple[Tensor, Tensor]) -> Tensor:
        rows_TK, vectors_TV = dispatched
        return multiply_rows(shard_nv, rows_TK, vectors_TV)

    async def combine_products(self, found: Tensor, dispatched: tuple[Tensor, Tensor]) -> Tensor:
        return found

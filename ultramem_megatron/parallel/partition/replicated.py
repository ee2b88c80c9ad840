"""Replicated: every rank holds the whole table and nothing travels (P = 1). Table gradients meet over ``mem_dp``."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ultramem_megatron.parallel.partition.base import Picks, Shard, ValuePartition
from ultramem_megatron.parallel.partition.pooling import multiply_rows, pool_rows
from ultramem_megatron.parallel.partition.row_plan import PlanAhead, plan_gradients


@dataclass(frozen=True, slots=True)
class OwnPicks:
    """The picks of this rank, all of which it looks up."""

    picks: Picks
    plan: PlanAhead | None


@dataclass(frozen=True, slots=True)
class OwnVectors:
    """Whose inner products this rank computes."""

    rows_TK: Tensor
    vectors_TV: Tensor
    plan: PlanAhead | None


class Replicated(ValuePartition):
    """The unsplit table."""

    def shard(self, rank: int) -> Shard:
        return Shard(range(self.table.num_rows), range(self.table.value_dim))

    async def dispatch(self, picks: Picks, tokens: Sequence[int]) -> OwnPicks:
        return OwnPicks(picks, plan_gradients(picks.rows_TK, self.table.num_rows))

    def lookup(self, shard_nv: Tensor, dispatched: OwnPicks) -> Tensor:
        picks, value_dim = dispatched.picks, self.table.value_dim
        return pool_rows(
            shard_nv,
            picks.rows_TK,
            picks.blocks_TK,
            picks.scores_hTK,
            self.table.blocks,
            range(value_dim),
            value_dim,
            dispatched.plan,
        )

    async def combine(self, found: Tensor, dispatched: OwnPicks) -> Tensor:
        return found

    async def dispatch_products(self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]) -> OwnVectors:
        return OwnVectors(rows_TK, vectors_TV, plan_gradients(rows_TK, self.table.num_rows))

    def lookup_products(self, shard_nv: Tensor, dispatched: OwnVectors) -> Tensor:
        return multiply_rows(shard_nv, dispatched.rows_TK, dispatched.vectors_TV, dispatched.plan)

    async def combine_products(self, found: Tensor, dispatched: OwnVectors) -> Tensor:
        return found

"""Number-wise partition, pooled at the owners: each rank of the ``mem`` group holds whole rows, and sums those that a
token picks before they travel.

Picks and scores travel to the owners of the rows; of each token's virtual block, an owner sends one partial sum,
however many rows it holds of it. At home the partial sums are added in fp32. For inner products, a token's vector
travels once to each owner that it needs, and the products travel back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_kernels.precision import widened
from ultramem_megatron.parallel.beside import Beside
from ultramem_megatron.parallel.collectives import begin_all_to_all
from ultramem_megatron.parallel.exchange import Exchange, Together
from ultramem_megatron.parallel.host_numbers import SizesUnderWay
from ultramem_megatron.parallel.partition.base import Picks, Shard, ValuePartition, even_range
from ultramem_megatron.parallel.partition.by_owner import PicksByOwner, read_marks, sort_by_owner
from ultramem_megatron.parallel.partition.grouped import multiply_groups, pool_groups
from ultramem_megatron.parallel.partition.pooling import read_rows, sum_rows
from ultramem_megatron.parallel.partition.row_plan import PlanAhead, plan_gradients, plan_sums

# Letters: P ranks of the group, T tokens of this rank, K picks per token, R = T * K, E blocks, h score cores,
#          V value dimension; U groups of this rank's picks, A picks that came here and G groups of them.


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of an exchange, by rank."""

    sent_picks: list[int]
    sent_groups: list[int]
    asked_picks: list[int]
    asked_groups: list[int]


@dataclass(frozen=True, slots=True)
class Errand:
    """What this rank does for others, and where their answers belong. A group is answered by one partial sum, or has
    one vector."""

    rows_A: Tensor
    """int32 local row numbers of the picks that came here."""
    group_A: Tensor
    """int64 group of each."""
    plan: PlanAhead | None
    """Of the rows."""
    given: Tensor
    """What came with them: scores_Ah of a lookup, vectors_GV of inner products."""
    home: PicksByOwner
    """This rank's own picks."""
    sizes: Sizes
    shape_TK: torch.Size


class NumberWisePooled(ValuePartition):
    """Rows split over the group, pooled where they are."""

    waits = 3  # how many picks, the picks with their scores, the sums

    def shard(self, rank: int) -> Shard:
        return Shard(even_range(self.table.num_rows, self.channel.size, rank), range(self.table.value_dim))

    async def dispatch(self, picks: Picks, tokens: Sequence[int]) -> Errand:
        blocks = self.table.blocks
        token_T1 = torch.arange(picks.rows_TK.shape[0], device=picks.rows_TK.device).unsqueeze(1)
        key_TK = token_T1 * blocks + (picks.blocks_TK if blocks > 1 else torch.zeros_like(picks.rows_TK))
        home, sizes = await self._find_owners(picks.rows_TK, key_TK, blocks * picks.rows_TK.shape[0])
        scores_Rh = picks.scores_hTK.flatten(1).transpose(0, 1).index_select(0, home.order_R)
        scores = begin_all_to_all(scores_Rh, sizes.sent_picks, sizes.asked_picks, self.channel, "scores")
        marked_A, scores_Ah = await Together(self._send_rows(home, sizes), scores)
        return self._errand(marked_A, scores_Ah, home, sizes, picks.rows_TK.shape)

    def lookup(self, shard_nv: Tensor, dispatched: Errand) -> Tensor:
        groups = sum(dispatched.sizes.asked_groups)
        return pool_groups(shard_nv, dispatched.rows_A, dispatched.group_A, dispatched.given, groups, dispatched.plan)

    async def combine(self, found: Tensor, dispatched: Errand) -> Tensor:
        sizes, tokens = dispatched.sizes, dispatched.shape_TK[0]
        sums = tokens * self.table.blocks
        key_U = dispatched.home.key_R[: sum(sizes.sent_groups)]
        plan = plan_sums(key_U, sums)  # while the partial sums travel
        parts_UV = await begin_all_to_all(found, sizes.asked_groups, sizes.sent_groups, self.channel, "partial sums")
        pooled = sum_rows(widened(parts_UV), key_U, sums, plan)
        return pooled.view(tokens, self.table.blocks, self.table.value_dim).to(found.dtype)

    async def dispatch_products(self, rows_TK: Tensor, vectors_TV: Tensor, tokens: Sequence[int]) -> Errand:
        token_TK = torch.arange(rows_TK.shape[0], device=rows_TK.device).unsqueeze(1).expand(rows_TK.shape)
        home, sizes = await self._find_owners(rows_TK, token_TK, rows_TK.shape[0])
        # read_rows: a vector's gradients from its owners are summed in fp32
        key_U = home.key_R[: sum(sizes.sent_groups)]
        vectors_UV = read_rows(vectors_TV, key_U, plan_gradients(key_U, rows_TK.shape[0]))
        vectors = begin_all_to_all(vectors_UV, sizes.sent_groups, sizes.asked_groups, self.channel, "vectors")
        marked_A, vectors_GV = await Together(self._send_rows(home, sizes), vectors)
        return self._errand(marked_A, vectors_GV, home, sizes, rows_TK.shape)

    def lookup_products(self, shard_nv: Tensor, dispatched: Errand) -> Tensor:
        return multiply_groups(shard_nv, dispatched.rows_A, dispatched.group_A, dispatched.given, dispatched.plan)

    async def combine_products(self, found: Tensor, dispatched: Errand) -> Tensor:
        sizes, order_R = dispatched.sizes, dispatched.home.order_R
        products_R = await begin_all_to_all(found, sizes.asked_picks, sizes.sent_picks, self.channel, "products")
        return torch.zeros_like(products_R).index_copy(0, order_R, products_R).view(dispatched.shape_TK)

    async def _find_owners(self, rows_TK: Tensor, key_TK: Tensor, num_keys: int) -> tuple[PicksByOwner, Sizes]:
        """This rank's picks in the order of their owners, and how many of each rank's meet where."""
        with Beside(rows_TK, key_TK) as work:
            home = sort_by_owner(rows_TK, key_TK, num_keys, self.table.num_rows, self.channel.size)
            sizes_under_way = SizesUnderWay(home.sizes_P2, self.channel)
        sent_P2, asked_P2 = await sizes_under_way  # the operation's one wait for the device
        work.join(home.order_R, home.marked_rows_R, home.key_R)
        (sent_picks, sent_groups), (asked_picks, asked_groups) = zip(*sent_P2, strict=True), zip(*asked_P2, strict=True)
        sizes = Sizes(list(sent_picks), list(sent_groups), list(asked_picks), list(asked_groups))
        self.channel.traffic.served_requests += sum(sizes.asked_picks)
        return home, sizes

    def _send_rows(self, home: PicksByOwner, sizes: Sizes) -> Exchange:
        return begin_all_to_all(home.marked_rows_R, sizes.sent_picks, sizes.asked_picks, self.channel, "row numbers")

    def _errand(
        self, marked_A: Tensor, given: Tensor, home: PicksByOwner, sizes: Sizes, shape_TK: torch.Size
    ) -> Errand:
        rows_A, group_A = read_marks(marked_A)
        own = self.shard(self.channel.rank).rows
        rows_A = rows_A - own.start
        return Errand(rows_A, group_A, plan_gradients(rows_A, len(own)), given, home, sizes, shape_TK)

"""Product keys: two key tables address a grid of slots (paper eq. 1-3)."""

import torch
from torch import Tensor, nn

from ultramem_kernels.grid_top_m import Addresses, best_slots
from ultramem_kernels.precision import wide_type, widened
from ultramem_megatron.memory.candidate_scores import best_scores
from ultramem_megatron.memory.norm import QueryKeyNorm
from ultramem_megatron.memory.query import CausalConv, QueryProjection
from ultramem_megatron.memory.token_share import TokenShare
from ultramem_megatron.planning.memory_shape import MemoryShape

# Letters: s, b, D as in query.py; T tokens, H heads, Q queries, S keys per side, c candidates of a side, m kept per
#          head, r ranks (components of a score; 1 without a Tucker core), d channels of one rank's key, h cores.


class SubKeys(nn.Module):
    """Row and column keys of every head, [H, 2, S, r, d]."""

    def __init__(self, heads: int, side: int, ranks: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, 2, side, ranks, width, dtype=dtype))

    def forward(self) -> Tensor:
        """The keys in fp32: scores decide a ranking, and bf16 has many ties."""
        return widened(self.weight)


class ProductKeyRetrieval(nn.Module):
    """Hidden states -> the best row and the best column keys, and of their grid the best slots.

    Which slots are best, subclasses say: those of the largest sums or of the largest bilinear forms. Scores weigh the
    picks as they are, or by their softmax over the picks of a head (paper Table 2, "rm softmax").
    """

    def __init__(self, shape: MemoryShape, share: TokenShare, dtype: torch.dtype, *, softmax: bool = False) -> None:
        super().__init__()
        self.shape, self.softmax = shape, softmax
        kernel, width = shape.conv_kernel, shape.rank_width
        self.conv = CausalConv(shape.hidden, kernel, share, dtype) if kernel else nn.Identity()
        self.query = QueryProjection(shape.hidden, shape.queries, shape.query_width, dtype)
        self.keys = SubKeys(shape.heads, shape.grid_side, shape.ranks, width, dtype)
        self.query_norm = QueryKeyNorm(width, dtype) if shape.normalize else nn.Identity()
        self.key_norm = QueryKeyNorm(width, dtype) if shape.normalize else nn.Identity()

    def forward(self, x_sbD: Tensor) -> tuple[Tensor, Tensor]:
        """Slots int64 [T, H * m] in [0, S * S) and their scores [h, T, H * m], fp32."""
        side = self.shape.grid_side
        slots_TK, _, scores_hTK = self.pick(x_sbD, Addresses(side, side * side))
        return slots_TK.long(), scores_hTK

    def pick(self, x_sbD: Tensor, addresses: Addresses) -> tuple[Tensor, Tensor, Tensor]:
        """Where the picks' values lie: int32 rows and uint8 blocks [T, H * m], and their scores [h, T, H * m], fp32."""
        index_TH2c, sides_TH2rc, cores_Hhrr = self.candidates(x_sbD)
        rows_THm, blocks_THm, scores_hTHm = best_slots(sides_TH2rc, index_TH2c, cores_Hhrr, self.shape.top_m, addresses)
        if self.softmax:
            scores_hTHm = scores_hTHm.softmax(dim=-1)
        return rows_THm.flatten(1), blocks_THm.flatten(1), scores_hTHm.flatten(2)

    def candidates(self, x_sbD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """index_TH2c of the best keys of each side, their scores sides_TH2rc, and cores_Hhrr, which join two sides."""
        raise NotImplementedError

    def queries_and_keys(self, x_sbD: Tensor) -> tuple[Tensor, Tensor]:
        """What scores are the inner products of: [T, H, 2, r, d] and [H, 2, S, r, d], fp32."""
        shape = self.shape
        x_TD = self.conv(x_sbD).flatten(0, 1)
        queries_TQ2rd = widened(self.query(x_TD)).unflatten(-1, (shape.query_ranks, -1))
        # heads that share a query read the same numbers, and so do ranks that share one
        queries_TQ2rd = self.query_norm(queries_TQ2rd).expand(-1, -1, -1, shape.ranks, -1)
        return queries_TQ2rd.repeat_interleave(shape.heads_per_query, dim=1), self.key_norm(self.keys())

    def best_of_sides(self, x_sbD: Tensor, direction_H2r: Tensor) -> tuple[Tensor, Tensor]:
        """Of each side the keys with the best scores projected on ``direction``: index_TH2c, and scores_TH2rc, fp32."""
        queries_TH2rd, keys_H2Srd = self.queries_and_keys(x_sbD)
        index_TBc, best_TBrc = best_scores(
            queries_TH2rd.flatten(1, 2), keys_H2Srd.flatten(0, 1), direction_H2r.flatten(0, 1), self.shape.candidates
        )
        sides = (self.shape.heads, 2)
        return index_TBc.unflatten(1, sides), best_TBrc.unflatten(1, sides)


class AdditiveRetrieval(ProductKeyRetrieval):
    """PKM: the slots with the largest sum of a row and a column score."""

    swap: Tensor

    def __init__(self, shape: MemoryShape, share: TokenShare, dtype: torch.dtype, *, softmax: bool) -> None:
        super().__init__(shape, share, dtype, softmax=softmax)
        self.register_buffer("swap", torch.tensor([[0.0, 1.0], [1.0, 0.0]]), persistent=False)

    def candidates(self, x_sbD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A sum is the bilinear form ``(s_row, 1) [[0, 1], [1, 0]] (s_col, 1)^T``, exactly."""
        heads = self.shape.heads
        wide = wide_type(self.keys.weight)
        index_TH2c, best_TH21c = self.best_of_sides(x_sbD, x_sbD.new_ones((heads, 2, 1), dtype=wide))
        sides_TH22c = torch.cat([best_TH21c, torch.ones_like(best_TH21c)], dim=3)
        return index_TH2c, sides_TH22c, self.swap.to(wide).expand(heads, 1, 2, 2)

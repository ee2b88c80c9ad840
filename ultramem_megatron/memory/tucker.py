"""TDQKR: Tucker-decomposed query-key retrieval, with several score cores (paper eq. 4-10 and 16-17).

S = S_row^T C S_col ranks the slots, C = sum of the cores. The leading singular vectors u, t of C give one score a
side, so that the exact top m need be found only among m x m candidates. u and t choose candidates and carry no
gradient; queries, keys and cores learn through the scores of the picks.
"""

import torch
from torch import Tensor, nn

from ultramem_megatron.memory.norm import QueryKeyNorm
from ultramem_megatron.memory.product_keys import SubKeys, grid_slots
from ultramem_megatron.memory.query import CausalConv, QueryProjection
from ultramem_megatron.memory.token_share import TokenShare

# Letters: s, b, D as in query.py; T tokens, H heads, Q queries, S keys per side, m kept per head, r Tucker rank,
#          h cores, d = Dk / r width of one rank's keys.


class TuckerCore(nn.Module):
    """The cores [H, h, r, r] and the leading singular vectors of their sum."""

    left: Tensor
    right: Tensor

    def __init__(self, heads: int, cores: int, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, cores, rank, rank, dtype=dtype))
        # kept in the checkpoint: their sign is a choice, and a resumed run must not choose anew
        self.register_buffer("left", torch.zeros(heads, rank))
        self.register_buffer("right", torch.zeros(heads, rank))

    @torch.no_grad()
    def refresh(self) -> None:
        """Take u and t from the present cores; call once before each optimizer step's micro-batches.

        (u, t) and (-u, -t) are the same matrix but pick other candidates, since only the largest scores count. At
        first the sum of u is made positive; later the pair nearer to the one before is taken.
        """
        # widened before the sum, as in the forward pass; r x r: the CPU is as quick, and its digits are the same
        summed = self.weight.double().sum(dim=1).cpu()
        u, _, t = torch.linalg.svd(summed)
        left, right = u[..., 0], t[..., 0, :]
        before = self.left.double().cpu()
        toward = torch.where(before.any(dim=-1), (left * before).sum(-1), left.sum(-1))
        sign = torch.where(toward < 0, -1.0, 1.0).unsqueeze(-1)
        self.left.copy_(sign * left)
        self.right.copy_(sign * right)


class TuckerRetrieval(nn.Module):
    """Queries, keys and cores -> slots and one score for each core."""

    def __init__(
        self,
        *,
        hidden: int,
        heads: int,
        heads_per_query: int,
        side: int,
        key_dim: int,
        rank: int,
        cores: int,
        top_m: int,
        conv_kernel: int,
        normalize: bool,
        share: TokenShare,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.conv = CausalConv(hidden, conv_kernel, share, dtype) if conv_kernel > 0 else nn.Identity()
        self.query = QueryProjection(hidden, heads // heads_per_query, key_dim, dtype)
        self.keys = SubKeys(heads, side, rank, key_dim, dtype)
        self.query_norm = QueryKeyNorm(key_dim // rank, dtype) if normalize else nn.Identity()
        self.key_norm = QueryKeyNorm(key_dim // rank, dtype) if normalize else nn.Identity()
        self.core = TuckerCore(heads, cores, rank, dtype)
        self.heads_per_query, self.rank, self.side, self.top_m = heads_per_query, rank, side, top_m

    def forward(self, x_sbD: Tensor) -> tuple[Tensor, Tensor]:
        """Slots int64 [T, H * m] in [0, S * S) and their scores [h, T, H * m], fp32."""
        scores_TH2rS = self._side_scores(x_sbD)
        core = self.core.weight.float()
        index_TH2m = self._candidates(scores_TH2rS.detach())
        best_TH2rm = scores_TH2rS.gather(-1, index_TH2m.unsqueeze(3).expand(-1, -1, -1, self.rank, -1))
        rows_THrm, columns_THrm = best_TH2rm.unbind(2)
        with torch.no_grad():
            grid_THmm = torch.einsum("thai,hab,thbj->thij", rows_THrm, core.sum(dim=1), columns_THrm)
            flat_THm = grid_THmm.flatten(2).topk(self.top_m, dim=-1).indices
        slots_THm = grid_slots(index_TH2m, flat_THm, self.side)
        scores_hTHm = self._core_scores(rows_THrm, columns_THrm, core, flat_THm)
        return slots_THm.flatten(1), scores_hTHm.flatten(2)

    def _side_scores(self, x_sbD: Tensor) -> Tensor:
        """S_row and S_col: [T, H, 2, r, S]."""
        x_TD = self.conv(x_sbD).flatten(0, 1)
        queries_TQ2rd = self.query(x_TD).unflatten(-1, (self.rank, -1)).float()
        queries_TH2rd = self.query_norm(queries_TQ2rd).repeat_interleave(self.heads_per_query, dim=1)
        keys_H2Srd = self.key_norm(self.keys())
        return torch.einsum("thcad,hcsad->thcas", queries_TH2rd, keys_H2Srd)

    def _candidates(self, scores_TH2rS: Tensor) -> Tensor:
        """Stage 1: the m best rows by u^T S_row and columns by t^T S_col, [T, H, 2, m]."""
        sides_H2r = torch.stack([self.core.left, self.core.right], dim=1)
        projected_TH2S = torch.einsum("hcr,thcrs->thcs", sides_H2r, scores_TH2rS)
        return projected_TH2S.topk(self.top_m, dim=-1).indices

    def _core_scores(self, rows_THrm: Tensor, columns_THrm: Tensor, core: Tensor, flat_THm: Tensor) -> Tensor:
        """Stage 2, at the picks: s_row^T C^(i) s_col for each core i, [h, T, H, m]."""
        ranks = (-1, -1, self.rank, -1)
        rows = rows_THrm.gather(-1, (flat_THm // self.top_m).unsqueeze(2).expand(ranks))
        columns = columns_THrm.gather(-1, (flat_THm % self.top_m).unsqueeze(2).expand(ranks))
        return torch.einsum("tham,hcab,thbm->cthm", rows, core, columns)

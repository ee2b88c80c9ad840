"""Product keys: two key tables address a grid of slots (paper eq. 1-3)."""

import torch
from torch import Tensor, nn

from ultramem_megatron.memory.query import QueryProjection

# Letters: T tokens, H heads, S keys per side, m kept per head, Dk key width.


class SubKeys(nn.Module):
    """Row and column keys of every head, [H, 2, S, ranks, Dk / ranks]."""

    def __init__(self, heads: int, side: int, ranks: int, key_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, 2, side, ranks, key_dim // ranks, dtype=dtype))

    def forward(self) -> Tensor:
        """The keys in fp32: scores decide a ranking, and bf16 has many ties."""
        return self.weight.float()


class AdditiveRetrieval(nn.Module):
    """PKM: top m of row scores plus column scores, weights by softmax over the m picks of each head."""

    def __init__(self, hidden: int, heads: int, side: int, key_dim: int, top_m: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.query = QueryProjection(hidden, heads, key_dim, dtype)
        self.keys = SubKeys(heads, side, 1, key_dim, dtype)
        self.side, self.top_m = side, top_m

    def forward(self, x_sbD: Tensor) -> tuple[Tensor, Tensor]:
        """Slots int64 [T, H * m] in [0, S * S) and their weights [1, T, H * m], fp32."""
        queries_TH2D = self.query(x_sbD.flatten(0, 1)).float()
        keys_H2SD = self.keys().squeeze(3)
        scores_TH2S = torch.einsum("thcd,hcsd->thcs", queries_TH2D, keys_H2SD)
        best_TH2m, index_TH2m = scores_TH2S.topk(self.top_m, dim=-1)
        sums_THmm = best_TH2m[:, :, 0, :, None] + best_TH2m[:, :, 1, None, :]
        picked_THm, flat_THm = sums_THmm.flatten(2).topk(self.top_m, dim=-1)
        slots_THm = grid_slots(index_TH2m, flat_THm, self.side)
        weights_THm = picked_THm.softmax(dim=-1)
        return slots_THm.flatten(1), weights_THm.flatten(1).unsqueeze(0)


def grid_slots(index_TH2m: Tensor, flat_THm: Tensor, side: int) -> Tensor:
    """Slots ``row * side + column`` of candidates ``flat`` in the m x m grid of the picked rows and columns."""
    m = index_TH2m.shape[-1]
    rows_THm = index_TH2m[:, :, 0].gather(-1, flat_THm // m)
    columns_THm = index_TH2m[:, :, 1].gather(-1, flat_THm % m)
    return rows_THm * side + columns_THm

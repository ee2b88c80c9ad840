"""TDQKR: Tucker-decomposed query-key retrieval, with several score cores (paper eq. 4-10 and 16-17).

S = S_row^T C S_col ranks the slots, C = sum of the cores. The leading singular vectors u, t of C give one score a
side, so that the exact top m need be found only among m x m candidates. u and t choose candidates and carry no
gradient; queries, keys and cores learn through the scores of the picks.
"""

import torch
from torch import Tensor, nn

from ultramem_kernels.precision import widened
from ultramem_megatron.memory.product_keys import ProductKeyRetrieval
from ultramem_megatron.memory.token_share import TokenShare
from ultramem_megatron.planning.memory_shape import MemoryShape

# Letters: as in product_keys.py, with r the Tucker rank, and h cores.

ROUNDING = 1e-6
"""A sum of entries of a unit vector that is nearer to 0 has no sign to rely on: u is kept in fp32."""


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
        sign = _sign(left, self.left.double().cpu())
        self.left.copy_(sign * left)
        self.right.copy_(sign * right)


def _sign(left_Hr: Tensor, before_Hr: Tensor) -> Tensor:
    """+1 or -1 for each head, [H, 1], such that the result does not depend on the sign that LAPACK gave ``left``.

    Toward ``before``; without one (zeros), or at right angles to it, so that the sum is positive; or, where that is 0
    too, the largest entry.
    """
    largest_H1 = left_Hr.gather(-1, left_Hr.abs().argmax(dim=-1, keepdim=True))
    toward_H1 = largest_H1
    for better_H1 in (left_Hr.sum(-1, keepdim=True), (left_Hr * before_Hr).sum(-1, keepdim=True)):
        toward_H1 = torch.where(better_H1.abs() > ROUNDING, better_H1, toward_H1)
    return torch.where(toward_H1 < 0, -1.0, 1.0)


class TuckerRetrieval(ProductKeyRetrieval):
    """The slots with the largest score s_row^T C s_col, and for each of them one score of each core."""

    def __init__(self, shape: MemoryShape, share: TokenShare, dtype: torch.dtype, *, softmax: bool) -> None:
        super().__init__(shape, share, dtype, softmax=softmax)
        self.core = TuckerCore(shape.heads, shape.cores, shape.tucker_rank, dtype)

    def candidates(self, x_sbD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates by their scores projected on u and t; the score cores join them."""
        core_Hhrr = widened(self.core.weight)
        direction_H2r = torch.stack([self.core.left, self.core.right], dim=1).to(core_Hhrr.dtype)
        index_TH2c, sides_TH2rc = self.best_of_sides(x_sbD, direction_H2r)
        return index_TH2c, sides_TH2rc, core_Hhrr

"""Queries from hidden states: causal depthwise convolution, then one projection (paper Table 2, "query conv")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultramem_kernels.precision import widened
from ultramem_kernels.product import linear
from ultramem_megatron.memory.token_share import TokenShare

# Letters: s tokens of a sequence on this rank, p those and the ones before them that a kernel sees, b sequences,
#          D hidden width, k taps, T = s * b tokens, Q queries.


class CausalConv(nn.Module):
    """y[t] = sum over j of w[:, j] * x[t - (kernel - 1) + j], each channel on its own."""

    def __init__(self, hidden: int, kernel: int, share: TokenShare, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, kernel, dtype=dtype))
        self.share = share

    def forward(self, x_sbD: Tensor) -> Tensor:
        """[s, b, D] -> [s, b, D]; the first tokens of a share see the end of the share before it."""
        padded_pbD = torch.cat([self.share.tokens_before(x_sbD, self.weight.shape[1] - 1), x_sbD])
        if padded_pbD.is_cuda:
            return convolve_reference(padded_pbD, self.weight)
        return _ShiftedSums.apply(widened(padded_pbD), widened(self.weight)).to(x_sbD.dtype)


def convolve_reference(padded_pbD: Tensor, weight_Dk: Tensor) -> Tensor:
    """The convolution without what precedes the tokens: [p, b, D] and [D, k] -> [p - k + 1, b, D]."""
    padded_bDp = padded_pbD.permute(1, 2, 0)
    return F.conv1d(padded_bDp, weight_Dk.unsqueeze(1), groups=weight_Dk.shape[0]).permute(2, 0, 1)


class _ShiftedSums(torch.autograd.Function):
    """``convolve_reference`` as k products with shifted inputs: on a CPU five times as fast as the general routine,
    which has other layouts and copies from and to them."""

    @staticmethod
    def forward(ctx, padded_pbD: Tensor, weight_Dk: Tensor) -> Tensor:
        taps_kD = weight_Dk.t().contiguous()
        ctx.save_for_backward(padded_pbD, taps_kD)
        tokens = padded_pbD.shape[0] - taps_kD.shape[0] + 1
        out_sbD = padded_pbD[:tokens] * taps_kD[0]
        for shift in range(1, taps_kD.shape[0]):
            out_sbD.addcmul_(padded_pbD[shift : shift + tokens], taps_kD[shift])
        return out_sbD

    @staticmethod
    def backward(ctx, grad_sbD: Tensor):
        padded_pbD, taps_kD = ctx.saved_tensors
        tokens = grad_sbD.shape[0]
        padded_grad_pbD, taps_grad_kD = torch.zeros_like(padded_pbD), torch.empty_like(taps_kD)
        products_sbD = torch.empty_like(grad_sbD)
        for shift, tap_D in enumerate(taps_kD):
            seen = slice(shift, shift + tokens)
            padded_grad_pbD[seen].addcmul_(grad_sbD, tap_D)
            torch.mul(grad_sbD, padded_pbD[seen], out=products_sbD)
            torch.sum(products_sbD, dim=(0, 1), out=taps_grad_kD[shift])
        return padded_grad_pbD, taps_grad_kD.t()


class QueryProjection(nn.Module):
    """Hidden states -> queries, laid out as [Q, 2 (row, column), key_dim]."""

    def __init__(self, hidden: int, queries: int, key_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(queries * 2 * key_dim, hidden, dtype=dtype))
        self.queries, self.key_dim = queries, key_dim

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, Q, 2, key_dim]."""
        return linear(x_TD, self.weight).view(-1, self.queries, 2, self.key_dim)

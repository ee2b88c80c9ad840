"""Queries from hidden states: causal depthwise convolution, then one projection (paper Table 2, "query conv")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultramem_megatron.memory.token_share import TokenShare

# Letters: s tokens of a sequence on this rank, b sequences, D hidden width, T = s * b tokens, Q queries.


class CausalConv(nn.Module):
    """y[t] = sum over j of w[:, j] * x[t - (kernel - 1) + j], each channel on its own."""

    def __init__(self, hidden: int, kernel: int, share: TokenShare, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, kernel, dtype=dtype))
        self.share = share

    def forward(self, x_sbD: Tensor) -> Tensor:
        """[s, b, D] -> [s, b, D]; the first tokens of a share see the end of the share before it."""
        before = self.share.tokens_before(x_sbD, self.weight.shape[1] - 1)
        padded_bDs = torch.cat([before, x_sbD]).permute(1, 2, 0)
        return F.conv1d(padded_bDs, self.weight.unsqueeze(1), groups=self.weight.shape[0]).permute(2, 0, 1)


class QueryProjection(nn.Module):
    """Hidden states -> queries, laid out as [Q, 2 (row, column), key_dim]."""

    def __init__(self, hidden: int, queries: int, key_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(queries * 2 * key_dim, hidden, dtype=dtype))
        self.queries, self.key_dim = queries, key_dim

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, Q, 2, key_dim]."""
        return F.linear(x_TD, self.weight).view(-1, self.queries, 2, self.key_dim)

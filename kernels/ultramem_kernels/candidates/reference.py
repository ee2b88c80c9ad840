"""The meaning of ``best_candidates``, in plain PyTorch."""

import torch
from torch import Tensor

from ultramem_kernels.selection import top_m_reference

# Letters: B batches (a head's rows or columns), r components of a score, T tokens, S keys of a side, m kept.


def best_candidates_reference(scores_BrTS: Tensor, direction_Br: Tensor, m: int) -> Tensor:
    """The keys whose scores, projected on ``direction``, are largest (UltraMem paper, eq. 7-9).

    Args:
        scores_BrTS: fp32.
        direction_Br: fp32, the leading singular vector of the core.
        m: Keys to keep, at most S.

    Returns:
        int64 [B, T, m], from the best down; ties go to the smaller key.
    """
    batches, _, tokens, side = scores_BrTS.shape
    projected_BTS = torch.einsum("br,brts->bts", direction_Br, scores_BrTS)
    return top_m_reference(projected_BTS.reshape(-1, side), m).view(batches, tokens, m)

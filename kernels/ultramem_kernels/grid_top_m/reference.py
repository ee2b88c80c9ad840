"""The meaning of ``grid_top_m``, in plain PyTorch."""

import torch
from torch import Tensor

from ultramem_kernels.selection import top_m_reference

# Letters: T tokens, H heads, r components of a score, c candidates of a side, m kept.


def grid_top_m_reference(rows_THrc: Tensor, columns_THrc: Tensor, core_Hrr: Tensor, m: int) -> Tensor:
    """The places of the largest ``s_row^T C s_col`` among c x c candidates (UltraMem paper, eq. 10).

    Args:
        rows_THrc: fp32 scores of the candidate rows.
        columns_THrc: fp32 scores of the candidate columns.
        core_Hrr: fp32, the sum of the score cores.
        m: Places to keep, at most c * c.

    Returns:
        int64 [T, H, m] of ``row * c + column``, from the best down; ties go to the smaller place.
    """
    grid_THcc = torch.einsum("thai,hab,thbj->thij", rows_THrc, core_Hrr, columns_THrc)
    grid_Rn = grid_THcc.flatten(0, 1).flatten(1)
    return top_m_reference(grid_Rn, m).view(*rows_THrc.shape[:2], m)

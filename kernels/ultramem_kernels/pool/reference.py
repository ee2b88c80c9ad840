"""The meaning of ``pool``, in plain PyTorch: gather, then einsum. Slow on purpose; the other files must agree with it.

Differentiable by autograd, which keeps all the rows that were read.
"""

import torch
from torch import Tensor

from ultramem_kernels.precision import widened

# Letters: N rows of the table, V value dimension, T tokens, K picks per token, E blocks, h score cores, w = V / h,
#          A picks, G groups of them.


def pool_reference(table_NV: Tensor, rows_TK: Tensor, blocks_TK: Tensor, scores_hTK: Tensor, num_blocks: int) -> Tensor:
    """``out[t, e, i-th slice] = sum over k with blocks[t, k] = e of scores[i, t, k] * table[rows[t, k], i-th slice]``.

    UltraMem paper (arXiv 2411.12364), eq. 14-17: IVE's grouped pooling with the slices of MCS.

    Args:
        table_NV: bf16, fp32 or fp64.
        rows_TK: Row numbers in [0, N). A token may pick a row twice; it counts twice.
        blocks_TK: Block of each pick, in [0, E).
        scores_hTK: Weight of each pick, one for each core; core i weighs the i-th of h equal slices of V.
        num_blocks: E.

    Returns:
        pooled_TEV in the type of the table, summed in fp32.
    """
    cores = scores_hTK.shape[0]
    rows_TKhw = widened(table_NV[rows_TK.long()]).unflatten(2, (cores, table_NV.shape[1] // cores))
    of_block_TKE = blocks_TK.unsqueeze(2) == torch.arange(num_blocks, device=blocks_TK.device)
    pooled = torch.einsum("tke,htk,tkhw->tehw", of_block_TKE.to(rows_TKhw.dtype), widened(scores_hTK), rows_TKhw)
    return pooled.flatten(2).to(table_NV.dtype)


def pool_groups_reference(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, scores_hA: Tensor, groups: int) -> Tensor:
    """``out[g, i-th slice] = sum over a with group[a] = g of scores[i, a] * table[rows[a], i-th slice]``.

    Args:
        table_NV: bf16, fp32 or fp64.
        rows_A: Row numbers in [0, N).
        group_A: Group of each pick, in [0, G).
        scores_hA: Weight of each pick, one for each core.
        groups: G. A group without picks is zero.

    Returns:
        sums_GV in the type of the table, summed in fp32.
    """
    cores = scores_hA.shape[0]
    rows_Ahw = widened(table_NV[rows_A.long()]).unflatten(1, (cores, table_NV.shape[1] // cores))
    weighed_AV = (rows_Ahw * widened(scores_hA).t().unsqueeze(2)).flatten(1)
    return weighed_AV.new_zeros(groups, weighed_AV.shape[1]).index_add(0, group_A, weighed_AV).to(table_NV.dtype)

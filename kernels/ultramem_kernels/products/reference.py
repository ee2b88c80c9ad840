"""The meaning of the inner products, in plain PyTorch: gather, then multiply and sum. Slow on purpose.

Differentiable by autograd, which keeps all the rows that were read.
"""

import torch
from torch import Tensor

from ultramem_kernels.precision import widened

# Letters: N rows of the table, V its columns, T tokens, K picks per token, A picks in all, G groups of them.


def multiply_rows_reference(table_NV: Tensor, rows_TK: Tensor, vectors_TV: Tensor) -> Tensor:
    """``products[t, k] = <table[rows[t, k]], vectors[t]>`` (arXiv 2508.18756, eq. 15), fp32, or fp64 if they are."""
    return torch.einsum("tkv,tv->tk", widened(table_NV[rows_TK.long()]), widened(vectors_TV))


def multiply_groups_reference(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor) -> Tensor:
    """``products[a] = <table[rows[a]], vectors[group[a]]>``, fp32, or fp64 if they are."""
    return (widened(table_NV[rows_A.long()]) * widened(vectors_GV)[group_A]).sum(dim=1)

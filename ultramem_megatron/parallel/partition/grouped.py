"""Rows weighed and summed by group, or multiplied with their group's vector: what an owner does for tokens elsewhere.

The two are each other's gradients. Rows are read part by part and not kept for the backward pass, which reads them
again: the table must not change in between. Gradients of rows go the way of those of ``read_rows``.
"""

import torch
from torch import Tensor

from ultramem_kernels import pool as kernels
from ultramem_kernels.precision import wide_type, widened
from ultramem_megatron.parallel.partition.rows import (
    add_rows,
    gradient_of,
    handed_over,
    parts,
    take_rows,
)

# Letters: n, V rows and columns of the table; A picks, G groups of them, h score cores.


def pool_groups(table_nV: Tensor, rows_A: Tensor, group_A: Tensor, scores_Ah: Tensor, groups: int) -> Tensor:
    """``out[g, c] = sum over a with group[a] = g of scores[a, core(c)] * table[rows[a], c]``, summed in fp32.

    Args:
        table_nV: bf16 or fp32; core i weighs the i-th of h equal slices of its columns.
        rows_A: Row numbers, any integer type, in [0, n). Rows may repeat.
        group_A: int64 group of each pick, in ascending order, in [0, G).
        scores_Ah: Weight of each pick, one for each core.
        groups: G. A group without picks is zero.

    Returns:
        sums_GV, in the type of the table.
    """
    return _PoolGroups.apply(table_nV, rows_A, group_A, scores_Ah, groups)


def multiply_groups(table_nV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor) -> Tensor:
    """``products[a] = <table[rows[a]], vectors[group[a]]>``.

    Args:
        table_nV: bf16 or fp32.
        rows_A: Row numbers, any integer type, in [0, n). Rows may repeat.
        group_A: int64 group of each pick, in [0, G).
        vectors_GV: One vector for each group.

    Returns:
        products_A, fp32; fp64 if the table is.
    """
    return _MultiplyGroups.apply(table_nV, rows_A, group_A, vectors_GV)


class _PoolGroups(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table_nV: Tensor, rows_A: Tensor, group_A: Tensor, scores_Ah: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(table_nV, rows_A, group_A, scores_Ah)
        return kernels.pool_groups(table_nV, rows_A, group_A, scores_Ah.t(), groups)

    @staticmethod
    def backward(ctx, grad_GV: Tensor):
        table_nV, rows_A, group_A, scores_Ah = ctx.saved_tensors
        target_nV = gradient_of(table_nV) if ctx.needs_input_grad[0] else None
        scores_grad_hA = kernels.pool_backward(
            grad_GV,
            table_nV,
            rows_A,
            group_A,
            scores_Ah.t(),
            table_grad_NV=target_nV,
            scores_need_grad=ctx.needs_input_grad[3],
        )
        scores_grad_Ah = None if scores_grad_hA is None else scores_grad_hA.t().contiguous()
        return _gradient_for(table_nV, target_nV), None, None, scores_grad_Ah, None


class _MultiplyGroups(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table_nV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor) -> Tensor:
        ctx.save_for_backward(table_nV, rows_A, group_A, vectors_GV)
        products_A = torch.empty(rows_A.shape, dtype=wide_type(table_nV), device=table_nV.device)
        for part in parts(rows_A, table_nV.shape[1]):
            vectors_AV = widened(take_rows(vectors_GV, group_A[part]))
            products_A[part] = (vectors_AV * take_rows(table_nV, rows_A[part])).sum(dim=1)
        return products_A

    @staticmethod
    def backward(ctx, grad_A: Tensor):
        table_nV, rows_A, group_A, vectors_GV = ctx.saved_tensors
        target_nV = gradient_of(table_nV) if ctx.needs_input_grad[0] else None
        vectors_grad_GV = torch.zeros_like(vectors_GV, dtype=wide_type(table_nV)) if ctx.needs_input_grad[3] else None
        for part in parts(rows_A, table_nV.shape[1]):
            grad_A1 = grad_A[part].unsqueeze(1)
            if vectors_grad_GV is not None:
                vectors_grad_GV.index_add_(0, group_A[part], grad_A1 * take_rows(table_nV, rows_A[part]))
            if target_nV is not None:
                add_rows(target_nV, rows_A[part], grad_A1 * take_rows(vectors_GV, group_A[part]))
        vectors_grad = None if vectors_grad_GV is None else vectors_grad_GV.to(vectors_GV.dtype)
        return _gradient_for(table_nV, target_nV), None, None, vectors_grad


def _gradient_for(table_nV: Tensor, target_nV: Tensor | None) -> Tensor | None:
    return None if target_nV is None else handed_over(target_nV, table_nV)

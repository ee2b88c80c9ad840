"""Rows weighed and summed by group, or multiplied with their group's vector: what an owner does for tokens elsewhere.

The two are each other's gradients. Rows are not kept for the backward pass, which reads them again: the table must not
change in between. Gradients of rows go the way of those of ``read_rows``, and plans are as for it.
"""

import torch
from torch import Tensor

from ultramem_kernels import pool as kernels
from ultramem_kernels import products
from ultramem_megatron.parallel.partition.row_plan import PlanAhead, taken
from ultramem_megatron.parallel.partition.rows import gradient_of, handed_over

# Letters: n, V rows and columns of the table; A picks, G groups of them, h score cores.


def pool_groups(
    table_nV: Tensor, rows_A: Tensor, group_A: Tensor, scores_Ah: Tensor, groups: int, plan: PlanAhead | None = None
) -> Tensor:
    """``out[g, c] = sum over a with group[a] = g of scores[a, core(c)] * table[rows[a], c]``, summed in fp32.

    Args:
        table_nV: bf16 or fp32; core i weighs the i-th of h equal slices of its columns.
        rows_A: Row numbers, any integer type, in [0, n). Rows may repeat.
        group_A: int64 group of each pick, in ascending order, in [0, G).
        scores_Ah: Weight of each pick, one for each core.
        groups: G. A group without picks is zero.
        plan: That of ``rows_A``.

    Returns:
        sums_GV, in the type of the table.
    """
    return _PoolGroups.apply(table_nV, rows_A, group_A, scores_Ah, groups, plan)


def multiply_groups(
    table_nV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor, plan: PlanAhead | None = None
) -> Tensor:
    """``products[a] = <table[rows[a]], vectors[group[a]]>``.

    Args:
        table_nV: bf16 or fp32.
        rows_A: Row numbers, any integer type, in [0, n). Rows may repeat.
        group_A: int64 group of each pick, in ascending order, in [0, G).
        vectors_GV: One vector for each group, in the type of the table.
        plan: That of ``rows_A``.

    Returns:
        products_A, fp32; fp64 if the table is.
    """
    return _MultiplyGroups.apply(table_nV, rows_A, group_A, vectors_GV, plan)


class _PoolGroups(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        table_nV: Tensor,
        rows_A: Tensor,
        group_A: Tensor,
        scores_Ah: Tensor,
        groups: int,
        plan: PlanAhead | None,
    ) -> Tensor:
        ctx.plan = plan
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
            plan=taken(ctx.plan),
        )
        scores_grad_Ah = None if scores_grad_hA is None else scores_grad_hA.t().contiguous()
        return _gradient_for(table_nV, target_nV), None, None, scores_grad_Ah, None, None


class _MultiplyGroups(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, table_nV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor, plan: PlanAhead | None
    ) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(table_nV, rows_A, group_A, vectors_GV)
        return products.multiply_groups(table_nV, rows_A, group_A, vectors_GV)

    @staticmethod
    def backward(ctx, grad_A: Tensor):
        """An inner product's gradient weighs the row for the vector, and the vector for the row."""
        table_nV, rows_A, group_A, vectors_GV = ctx.saved_tensors
        weights_1A = grad_A.unsqueeze(0)
        target_nV = vectors_grad = None
        if ctx.needs_input_grad[3]:
            vectors_grad = kernels.pool_groups(table_nV, rows_A, group_A, weights_1A, vectors_GV.shape[0])
        if ctx.needs_input_grad[0]:
            target_nV = gradient_of(table_nV)
            kernels.pool_backward(
                vectors_GV,
                table_nV,
                rows_A,
                group_A,
                weights_1A,
                table_grad_NV=target_nV,
                scores_need_grad=False,
                plan=taken(ctx.plan),
            )
        return _gradient_for(table_nV, target_nV), None, None, vectors_grad, None


def _gradient_for(table_nV: Tensor, target_nV: Tensor | None) -> Tensor | None:
    return None if target_nV is None else handed_over(target_nV, table_nV)

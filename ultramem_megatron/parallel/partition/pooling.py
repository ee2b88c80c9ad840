"""What a rank does with rows on its own: read them, pool them by block with the scores of each core, multiply them."""

import math

import torch
from torch import Tensor

from ultramem_kernels import products
from ultramem_kernels.pool import group_of, pool, pool_backward
from ultramem_megatron.parallel.partition.row_plan import PlanAhead, taken
from ultramem_megatron.parallel.partition.rows import add_rows, gradient_of, handed_over, take_rows

# Letters: n, v this rank's rows and columns; T tokens, K picks per token, E blocks, h cores, V value dimension.


def read_rows(shard_nv: Tensor, rows: Tensor, plan: PlanAhead | None = None) -> Tensor:
    """``shard_nv[rows]``, whose gradient goes straight into ``main_grad`` where Megatron's DDP gave one.

    With ``main_grad`` no dense [n, v] gradient is made: the parameter gets a placeholder without storage,
    as Megatron's fused weight gradient does, and DDP is told to leave it alone.

    Args:
        shard_nv: Table shard, bf16 or fp32.
        rows: Local row numbers, any integer type and shape, in [0, n). Rows may repeat.
        plan: That of ``rows``, where their gradients need one; made when they are summed if not given.

    Returns:
        [*rows.shape, v] in the type of the shard.
    """
    return _ReadRows.apply(shard_nv, rows, plan)


class _ReadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shard_nv: Tensor, rows: Tensor, plan: PlanAhead | None) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.plan = plan
        # a parameter for its main_grad; of rows that came from elsewhere only the shape, so that they can go
        ctx.shard = shard_nv if shard_nv.is_leaf else shard_nv.new_empty(()).expand(shard_nv.shape)
        return take_rows(shard_nv, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (rows,) = ctx.saved_tensors
        target = gradient_of(ctx.shard)
        add_rows(target, rows, grad, ctx.plan)
        return handed_over(target, ctx.shard), None, None


def sum_rows(given_UV: Tensor, rows_U: Tensor, num_rows: int, plan: PlanAhead | None = None) -> Tensor:
    """``out[r] = sum over u with rows[u] = r of given[u]``, the reverse of ``read_rows``.

    Args:
        given_UV: Summed in its own type.
        rows_U: int64, in [0, ``num_rows``). Rows may repeat.
        num_rows: Of the result; those that are not named are zero.
        plan: That of ``rows_U``, where sums need one; made here if not given.
    """
    return _SumRows.apply(given_UV, rows_U, num_rows, plan)


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, given_UV: Tensor, rows_U: Tensor, num_rows: int, plan: PlanAhead | None) -> Tensor:
        ctx.save_for_backward(rows_U)
        sums_nV = given_UV.new_zeros(num_rows, given_UV.shape[1])
        add_rows(sums_nV, rows_U, given_UV, plan)
        return sums_nV

    @staticmethod
    def backward(ctx, grad_nV: Tensor):
        return take_rows(grad_nV, ctx.saved_tensors[0]), None, None, None


def multiply_rows(table_nv: Tensor, rows_TK: Tensor, vectors_Tv: Tensor, plan: PlanAhead | None = None) -> Tensor:
    """``products[t, k] = <table[rows[t, k]], vectors[t]>``, whose gradient of the table goes as that of ``read_rows``.

    The rows that were read are not kept for the backward pass, which reads them again: the table must not change in
    between. They are never there all at once.

    Args:
        table_nv: bf16 or fp32.
        rows_TK: Row numbers, int32 or int64, in [0, n). Rows may repeat.
        vectors_Tv: One vector for each token, in the type of the table.
        plan: That of ``rows_TK``, as for ``read_rows``.

    Returns:
        products_TK, fp32; fp64 if the table is.
    """
    return _MultiplyRows.apply(table_nv, rows_TK, vectors_Tv, plan)


class _MultiplyRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table_nv: Tensor, rows_TK: Tensor, vectors_Tv: Tensor, plan: PlanAhead | None) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(table_nv, rows_TK, vectors_Tv)
        return products.multiply_rows(table_nv, rows_TK, vectors_Tv)

    @staticmethod
    def backward(ctx, grad_TK: Tensor):
        """An inner product's gradient weighs the row for the vector, and the vector for the row."""
        table_nv, rows_TK, vectors_Tv = ctx.saved_tensors
        one_block_TK = torch.zeros_like(rows_TK, dtype=torch.uint8)
        target_nv = vectors_grad = None
        if ctx.needs_input_grad[2]:
            vectors_grad = pool(table_nv, rows_TK, one_block_TK, grad_TK.unsqueeze(0), 1).squeeze(1)
        if ctx.needs_input_grad[0]:
            target_nv = gradient_of(table_nv)
            pool_backward(
                vectors_Tv,
                table_nv,
                rows_TK.reshape(-1),
                group_of(one_block_TK, 1),
                grad_TK.reshape(1, -1),
                table_grad_NV=target_nv,
                scores_need_grad=False,
                plan=taken(ctx.plan),
            )
        return None if target_nv is None else handed_over(target_nv, table_nv), None, vectors_grad, None


def pool_rows(
    table_nv: Tensor,
    rows_TK: Tensor,
    blocks_TK: Tensor,
    scores_hTK: Tensor,
    blocks: int,
    columns: range,
    value_dim: int,
    plan: PlanAhead | None = None,
) -> Tensor:
    """Read rows and sum those of each block, each core weighing its slice of the value dimension; summed in fp32.

    ``out[t, e, c] = sum over k with blocks[t, k] = e of scores[core(c), t, k] * table[rows[t, k], c]``
    (paper eq. 14-17: IVE's grouped pooling with MCS's slices). The gradient of the table goes as that of ``read_rows``.
    The rows that were read are not kept for the backward pass, which reads them again: the table must not change in
    between.

    Args:
        table_nv: Columns ``columns`` of a table, bf16 or fp32.
        rows_TK: Row numbers, int32 or int64, in [0, n). Rows may repeat.
        blocks_TK: uint8 block of each pick, in [0, E).
        scores_hTK: Scores of each core.
        blocks: E.
        columns: Which columns of the whole table ``v`` are; they may span several cores' slices.
        value_dim: V; core i owns ``[i * V / h, (i + 1) * V / h)``.
        plan: That of ``rows_TK``, as for ``read_rows``.

    Returns:
        pooled_TEv, in the type of the table.
    """
    cores = _cores_of(columns, value_dim // scores_hTK.shape[0])
    if cores != list(range(scores_hTK.shape[0])):
        scores_hTK = torch.stack([scores_hTK[core] for core in cores])
    return _PoolRows.apply(table_nv, rows_TK, blocks_TK, scores_hTK, blocks, plan)


def _cores_of(columns: range, width: int) -> list[int]:
    """The core of each piece of ``columns``, cut into equal pieces as wide as can be without one that has two cores.

    Args:
        columns: Consecutive columns of the whole table.
        width: Columns of a core.
    """
    edges = range(columns.start + width - columns.start % width, columns.stop, width)
    piece = math.gcd(len(columns), *(edge - columns.start for edge in edges))
    return [start // width for start in range(columns.start, columns.stop, piece)]


class _PoolRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        table_nv: Tensor,
        rows_TK: Tensor,
        blocks_TK: Tensor,
        scores_hTK: Tensor,
        blocks: int,
        plan: PlanAhead | None,
    ) -> Tensor:
        ctx.save_for_backward(table_nv, rows_TK, blocks_TK, scores_hTK)
        ctx.blocks, ctx.plan = blocks, plan
        # a parameter for its main_grad, which what comes back through hooks on saved tensors need not have
        ctx.owner = table_nv if table_nv.is_leaf else None
        return pool(table_nv, rows_TK, blocks_TK, scores_hTK, blocks)

    @staticmethod
    def backward(ctx, grad_TEv: Tensor):
        table_nv, rows_TK, blocks_TK, scores_hTK = ctx.saved_tensors
        owner = table_nv if ctx.owner is None else ctx.owner
        target_nv = gradient_of(owner) if ctx.needs_input_grad[0] else None
        scores_grad = pool_backward(
            grad_TEv.flatten(0, 1),
            table_nv,
            rows_TK.reshape(-1),
            group_of(blocks_TK, ctx.blocks),
            scores_hTK.flatten(1),
            table_grad_NV=target_nv,
            scores_need_grad=ctx.needs_input_grad[3],
            plan=taken(ctx.plan),
        )
        table_grad = None if target_nv is None else handed_over(target_nv, owner)
        return table_grad, None, None, None if scores_grad is None else scores_grad.view(scores_hTK.shape), None, None

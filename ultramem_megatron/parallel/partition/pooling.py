"""What a rank does with rows on its own: read them, pool them by block with the scores of each core, multiply them."""

import math

import torch
from torch import Tensor

from ultramem_kernels.pool import group_of, pool, pool_backward
from ultramem_kernels.precision import wide_type, widened
from ultramem_megatron.parallel.partition.rows import (
    add_rows,
    gradient_of,
    handed_over,
    parts,
    take_rows,
)

# Letters: n, v this rank's rows and columns; T tokens, K picks per token, E blocks, h cores, V value dimension.


def read_rows(shard_nv: Tensor, rows: Tensor) -> Tensor:
    """``shard_nv[rows]``, whose gradient goes straight into ``main_grad`` where Megatron's DDP gave one.

    With ``main_grad`` no dense [n, v] gradient is made: the parameter gets a placeholder without storage,
    as Megatron's fused weight gradient does, and DDP is told to leave it alone.

    Args:
        shard_nv: Table shard, bf16 or fp32.
        rows: Local row numbers, any integer type and shape, in [0, n). Rows may repeat.

    Returns:
        [*rows.shape, v] in the type of the shard.
    """
    return _ReadRows.apply(shard_nv, rows)


class _ReadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shard_nv: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        # a parameter for its main_grad; of rows that came from elsewhere only the shape, so that they can go
        ctx.shard = shard_nv if shard_nv.is_leaf else shard_nv.new_empty(()).expand(shard_nv.shape)
        return take_rows(shard_nv, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (rows,) = ctx.saved_tensors
        target = gradient_of(ctx.shard)
        add_rows(target, rows, grad)
        return handed_over(target, ctx.shard), None


def multiply_rows(table_nv: Tensor, rows_TK: Tensor, vectors_Tv: Tensor) -> Tensor:
    """``products[t, k] = <table[rows[t, k]], vectors[t]>``, whose gradient of the table goes as that of ``read_rows``.

    The rows that were read are not kept for the backward pass, which reads them again: the table must not change in
    between. They are never there all at once.

    Args:
        table_nv: bf16 or fp32.
        rows_TK: Row numbers, any integer type, in [0, n). Rows may repeat.
        vectors_Tv: One vector for each token.

    Returns:
        products_TK, fp32; fp64 if the table is.
    """
    return _MultiplyRows.apply(table_nv, rows_TK, vectors_Tv)


class _MultiplyRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table_nv: Tensor, rows_TK: Tensor, vectors_Tv: Tensor) -> Tensor:
        ctx.save_for_backward(table_nv, rows_TK, vectors_Tv)
        products_TK = torch.empty(rows_TK.shape, dtype=wide_type(table_nv), device=table_nv.device)
        for part in parts(rows_TK, table_nv.shape[1]):
            rows_TKv = widened(take_rows(table_nv, rows_TK[part]))
            products_TK[part] = (rows_TKv @ widened(vectors_Tv[part]).unsqueeze(2)).squeeze(2)
        return products_TK

    @staticmethod
    def backward(ctx, grad_TK: Tensor):
        table_nv, rows_TK, vectors_Tv = ctx.saved_tensors
        to_table, _, to_vectors = ctx.needs_input_grad
        target_nv = gradient_of(table_nv) if to_table else None
        vectors_grad_Tv = torch.empty_like(vectors_Tv) if to_vectors else None
        for part in parts(rows_TK, table_nv.shape[1]):
            if vectors_grad_Tv is not None:
                rows_TKv = widened(take_rows(table_nv, rows_TK[part]))
                vectors_grad_Tv[part] = (grad_TK[part].unsqueeze(1) @ rows_TKv).squeeze(1)
            if target_nv is not None:
                add_rows(target_nv, rows_TK[part], grad_TK[part].unsqueeze(2) * widened(vectors_Tv[part]).unsqueeze(1))
        return None if target_nv is None else handed_over(target_nv, table_nv), None, vectors_grad_Tv


def pool_rows(
    table_nv: Tensor,
    rows_TK: Tensor,
    blocks_TK: Tensor,
    scores_hTK: Tensor,
    blocks: int,
    columns: range,
    value_dim: int,
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

    Returns:
        pooled_TEv, in the type of the table.
    """
    cores = _cores_of(columns, value_dim // scores_hTK.shape[0])
    if cores != list(range(scores_hTK.shape[0])):
        scores_hTK = torch.stack([scores_hTK[core] for core in cores])
    return _PoolRows.apply(table_nv, rows_TK, blocks_TK, scores_hTK, blocks)


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
    def forward(ctx, table_nv: Tensor, rows_TK: Tensor, blocks_TK: Tensor, scores_hTK: Tensor, blocks: int) -> Tensor:
        ctx.save_for_backward(table_nv, rows_TK, blocks_TK, scores_hTK)
        ctx.blocks = blocks
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
        )
        table_grad = None if target_nv is None else handed_over(target_nv, owner)
        return table_grad, None, None, None if scores_grad is None else scores_grad.view(scores_hTK.shape), None

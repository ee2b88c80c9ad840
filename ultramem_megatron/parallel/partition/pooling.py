"""What a rank does with rows on its own: read them, pool them by block with the scores of each core, multiply them."""

import torch
from torch import Tensor

from ultramem_megatron.parallel.partition.rows import (
    add_rows,
    gradient_of,
    handed_over,
    parts,
    take_rows,
)
from ultramem_megatron.parallel.precision import wide_type, widened

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


def pool(
    rows_TKv: Tensor, blocks_TK: Tensor, scores_hTK: Tensor, blocks: int, columns: range, value_dim: int
) -> Tensor:
    """Sum the rows of each block, each core weighing its slice of the value dimension; summed in fp32.

    ``out[t, e, c] = sum over k with blocks[t, k] = e of scores[core(c), t, k] * rows[t, k, c]``
    (paper eq. 14-17: IVE's grouped pooling with MCS's slices).

    Args:
        rows_TKv: Columns ``columns`` of the picked rows.
        blocks_TK: Block of each pick, in [0, E).
        scores_hTK: Scores of each core.
        blocks: E.
        columns: Which columns of the table ``v`` are; they may span several cores' slices.
        value_dim: V; core i owns ``[i * V / h, (i + 1) * V / h)``.

    Returns:
        pooled_TEv, in the type of the rows.
    """
    of_block_TEK = blocks_TK.unsqueeze(1) == torch.arange(blocks, device=blocks_TK.device)[:, None]
    width = value_dim // scores_hTK.shape[0]
    pieces = []
    for core, scores_TK in enumerate(scores_hTK):
        start = max(columns.start, core * width) - columns.start
        stop = min(columns.stop, (core + 1) * width) - columns.start
        if start < stop:
            weights_TEK = of_block_TEK * widened(scores_TK).unsqueeze(1)
            pieces.append(weights_TEK @ widened(rows_TKv[:, :, start:stop]))
    return torch.cat(pieces, dim=-1).to(rows_TKv.dtype)

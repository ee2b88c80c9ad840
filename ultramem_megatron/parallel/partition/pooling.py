"""What a rank does with rows on its own: read them, pool them by block with the scores of each core, multiply them."""

import torch
from torch import Tensor

# Letters: n, v this rank's rows and columns; T tokens, K picks per token, E blocks, h cores, V value dimension.

PART_ELEMENTS = 2**24
"""Rows are multiplied so many elements at a time, 64 MiB in fp32: what all picks read would be gigabytes."""


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
        ctx.shard = shard_nv
        return _take_rows(shard_nv, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (rows,) = ctx.saved_tensors
        target = _gradient_of(ctx.shard)
        _add_rows(target, rows, grad)
        return _handed_over(target, ctx.shard), None


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
        products_TK = torch.empty(rows_TK.shape, dtype=_wide_type(table_nv), device=table_nv.device)
        for part in _parts(rows_TK, table_nv.shape[1]):
            rows_TKv = _widened(_take_rows(table_nv, rows_TK[part]))
            products_TK[part] = (rows_TKv @ _widened(vectors_Tv[part]).unsqueeze(2)).squeeze(2)
        return products_TK

    @staticmethod
    def backward(ctx, grad_TK: Tensor):
        table_nv, rows_TK, vectors_Tv = ctx.saved_tensors
        to_table, _, to_vectors = ctx.needs_input_grad
        target_nv = _gradient_of(table_nv) if to_table else None
        vectors_grad_Tv = torch.empty_like(vectors_Tv) if to_vectors else None
        for part in _parts(rows_TK, table_nv.shape[1]):
            if vectors_grad_Tv is not None:
                rows_TKv = _widened(_take_rows(table_nv, rows_TK[part]))
                vectors_grad_Tv[part] = (grad_TK[part].unsqueeze(1) @ rows_TKv).squeeze(1)
            if target_nv is not None:
                _add_rows(
                    target_nv, rows_TK[part], grad_TK[part].unsqueeze(2) * _widened(vectors_Tv[part]).unsqueeze(1)
                )
        return None if target_nv is None else _handed_over(target_nv, table_nv), None, vectors_grad_Tv


def _parts(rows_TK: Tensor, width: int) -> list[slice]:
    """Consecutive tokens whose rows, ``width`` wide, hold ``PART_ELEMENTS`` together; one token at least."""
    tokens, picks = rows_TK.shape
    size = max(1, PART_ELEMENTS // max(1, picks * width))
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _wide_type(x: Tensor) -> torch.dtype:
    """The type to sum in: fp32, so that sums do not round to bf16; fp64 stays, for gradient checks."""
    return torch.promote_types(x.dtype, torch.float32)


def _widened(x: Tensor) -> Tensor:
    return x.to(_wide_type(x))


def _take_rows(table_nv: Tensor, rows: Tensor) -> Tensor:
    """[*rows.shape, v]."""
    return table_nv.index_select(0, rows.reshape(-1)).view(*rows.shape, table_nv.shape[1])


def _gradient_of(table_nv: Tensor) -> Tensor:
    """Where to add gradients of rows: Megatron's ``main_grad``, or a new tensor without it."""
    main_grad = getattr(table_nv, "main_grad", None)
    if main_grad is not None:
        return main_grad
    return torch.zeros(table_nv.shape, dtype=_wide_type(table_nv), device=table_nv.device)


def _handed_over(target_nv: Tensor, table_nv: Tensor) -> Tensor:
    """What autograd gets as the table's gradient: ``target_nv``, or a placeholder where that is ``main_grad``."""
    if target_nv is not getattr(table_nv, "main_grad", None):
        return target_nv.to(table_nv.dtype)
    table_nv.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    table_nv.grad = None  # DDP's hook takes the placeholder away; without it the next would be added to no memory
    return _without_storage(table_nv)


def _add_rows(target_nv: Tensor, rows: Tensor, grad: Tensor) -> None:
    flat = grad.reshape(-1, grad.shape[-1])
    target_nv.index_add_(0, rows.reshape(-1), flat.to(target_nv.dtype))


def _without_storage(like: Tensor) -> Tensor:
    """A tensor of the right shape that owns no memory; autograd hands it over without reading it.

    Made once for each parameter: torch gives a shape only to memory that it has allocated, and a table's size more
    for an instant would count in the peak of every backward pass.
    """
    placeholder = getattr(like, "gradient_placeholder", None)
    if placeholder is None:
        placeholder = torch.empty_like(like)
        placeholder.untyped_storage().resize_(0)
        like.gradient_placeholder = placeholder  # type: ignore[attr-defined]
    return placeholder.detach()


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
            weights_TEK = of_block_TEK * _widened(scores_TK).unsqueeze(1)
            pieces.append(weights_TEK @ _widened(rows_TKv[:, :, start:stop]))
    return torch.cat(pieces, dim=-1).to(rows_TKv.dtype)

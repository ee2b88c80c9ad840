"""Local halves of a lookup: read rows of a shard, pool rows by block with the scores of each core."""

import torch
from torch import Tensor

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
        ctx.shard = shard_nv
        return shard_nv.index_select(0, rows.reshape(-1)).view(*rows.shape, shard_nv.shape[1])

    @staticmethod
    def backward(ctx, grad: Tensor):
        (rows,) = ctx.saved_tensors
        shard = ctx.shard
        target = getattr(shard, "main_grad", None)
        if target is None:
            dense = torch.zeros(shard.shape, dtype=torch.float32, device=shard.device)
            _add_rows(dense, rows, grad)
            return dense.to(shard.dtype), None
        _add_rows(target, rows, grad)
        shard.grad_added_to_main_grad = True
        shard.grad = None  # DDP's hook takes the placeholder away; without it the next would be added to no memory
        return _without_storage(shard), None


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
    of_block_TEK = (blocks_TK.unsqueeze(1) == torch.arange(blocks, device=blocks_TK.device)[:, None]).float()
    width = value_dim // scores_hTK.shape[0]
    pieces = []
    for core, scores_TK in enumerate(scores_hTK):
        start = max(columns.start, core * width) - columns.start
        stop = min(columns.stop, (core + 1) * width) - columns.start
        if start < stop:
            weights_TEK = of_block_TEK * scores_TK.float().unsqueeze(1)
            pieces.append(weights_TEK @ rows_TKv[:, :, start:stop].float())
    return torch.cat(pieces, dim=-1).to(rows_TKv.dtype)

"""``pool`` and ``pool_groups``: checks, the torch operators, and what runs where. Their gradients: ``gradients.py``.

A CPU tensor takes the torch path and a CUDA tensor the Triton kernels, which are imported when the first one comes.
There is no falling back from one to the other.
"""

import torch
from torch import Tensor

from ultramem_kernels import arguments
from ultramem_kernels.pool import torch_path
from ultramem_kernels.pool.checks import check_lookup
from ultramem_kernels.pool.gradients import backward_operator
from ultramem_kernels.precision import wide_type
from ultramem_kernels.triton_kernels import triton_kernels

# Letters: N rows of the table, V value dimension, T tokens, K picks per token, E blocks, h score cores; A picks in all,
#          G groups of them.

MAX_BLOCKS = 256


def pool(table_NV: Tensor, rows_TK: Tensor, blocks_TK: Tensor, scores_hTK: Tensor, num_blocks: int) -> Tensor:
    """The rows of each token, weighed and summed by block; see ``pool_reference``.

    Differentiable, with a dense gradient of the table; ``pool_backward`` adds to one that is there.

    Args:
        table_NV: bf16, fp32 or (CPU only) fp64, contiguous.
        rows_TK: int32 or int64, in [0, N).
        blocks_TK: uint8, in [0, E).
        scores_hTK: Floating; core i weighs the i-th of h equal slices of V.
        num_blocks: E.

    Returns:
        pooled_TEV in the type of the table, summed in fp32.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    check_lookup(table_NV, rows_TK, scores_hTK, ("h", *rows_TK.shape))
    arguments.need_shape("rows_TK", rows_TK, ("T", "K"))
    arguments.need_dtype("blocks_TK", blocks_TK, (torch.uint8,))
    arguments.need_shape("blocks_TK", blocks_TK, tuple(rows_TK.shape))
    arguments.need_same_device({"table_NV": table_NV, "blocks_TK": blocks_TK})
    if not 1 <= num_blocks <= MAX_BLOCKS:
        raise arguments.ArgumentError(f"num_blocks is {num_blocks}; expected 1 to {MAX_BLOCKS}")
    arguments.need_in_range("blocks_TK", blocks_TK, num_blocks)
    return _pool(table_NV, rows_TK, blocks_TK, scores_hTK, num_blocks)


def pool_groups(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, scores_hA: Tensor, groups: int) -> Tensor:
    """Rows, weighed and summed by group; see ``pool_groups_reference``. Differentiable as ``pool``.

    Args:
        table_NV: As for ``pool``.
        rows_A: int32 or int64, in [0, N).
        group_A: int64, in ascending order, in [0, G).
        scores_hA: Floating, of any strides.
        groups: G. A group without picks is zero.

    Returns:
        sums_GV in the type of the table, summed in fp32.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    arguments.need_shape("rows_A", rows_A, ("A",))
    check_lookup(table_NV, rows_A, scores_hA, ("h", rows_A.shape[0]))
    arguments.need_dtype("group_A", group_A, (torch.int64,))
    arguments.need_shape("group_A", group_A, (rows_A.shape[0],))
    arguments.need_same_device({"table_NV": table_NV, "group_A": group_A})
    arguments.need_in_range("group_A", group_A, groups)
    return _pool_groups(table_NV, rows_A, group_A, scores_hA, groups)


def group_of(blocks_TK: Tensor, num_blocks: int) -> Tensor:
    """int64 [T * K], ``token * E + block`` of each pick."""
    token_T1 = torch.arange(blocks_TK.shape[0], device=blocks_TK.device).unsqueeze(1)
    if num_blocks == 1:
        return token_T1.expand(blocks_TK.shape).reshape(-1)
    return (token_T1 * num_blocks + blocks_TK).view(-1)


# --- pool -------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ultramem::pool", mutates_args=(), device_types="cpu")
def _pool(table_NV: Tensor, rows_TK: Tensor, blocks_TK: Tensor, scores_hTK: Tensor, num_blocks: int) -> Tensor:
    tokens, picks = rows_TK.shape
    rows_A, scores_hA = rows_TK.reshape(-1), scores_hTK.flatten(1)
    if num_blocks == 1:
        starts_G = torch.arange(tokens) * picks
    else:
        group_A, order_A = group_of(blocks_TK, num_blocks).int().sort(stable=True)
        starts_G = torch.searchsorted(group_A, torch.arange(tokens * num_blocks, dtype=torch.int32))
        rows_A, scores_hA = rows_A[order_A], scores_hA.index_select(1, order_A)
    return torch_path.pool_sorted(table_NV, rows_A, starts_G, scores_hA).view(tokens, num_blocks, table_NV.shape[1])


@_pool.register_kernel("cuda")
def _(table_NV: Tensor, rows_TK: Tensor, blocks_TK: Tensor, scores_hTK: Tensor, num_blocks: int) -> Tensor:
    return triton_kernels("pool").pool(table_NV, rows_TK, blocks_TK, scores_hTK, num_blocks)


@_pool.register_fake
def _(table_NV: Tensor, rows_TK: Tensor, blocks_TK: Tensor, scores_hTK: Tensor, num_blocks: int) -> Tensor:
    return table_NV.new_empty(rows_TK.shape[0], num_blocks, table_NV.shape[1])


def _keep_pool(ctx, inputs, output) -> None:
    *tensors, ctx.num_blocks = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_pool(ctx, grad_TEV):
    table_NV, rows_TK, blocks_TK, scores_hTK = ctx.saved_tensors
    table_grad, scores_grad = _gradients(
        ctx,
        grad_TEV.flatten(0, 1),
        table_NV,
        rows_TK.reshape(-1),
        group_of(blocks_TK, ctx.num_blocks),
        scores_hTK.flatten(1),
    )
    return table_grad, None, None, None if scores_grad is None else scores_grad.view(scores_hTK.shape), None


_pool.register_autograd(_backward_of_pool, setup_context=_keep_pool)


# --- pool_groups ------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ultramem::pool_groups", mutates_args=(), device_types="cpu")
def _pool_groups(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, scores_hA: Tensor, groups: int) -> Tensor:
    starts_G = torch.searchsorted(group_A, torch.arange(groups))
    return torch_path.pool_sorted(table_NV, rows_A, starts_G, scores_hA.contiguous())


@_pool_groups.register_kernel("cuda")
def _(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, scores_hA: Tensor, groups: int) -> Tensor:
    return triton_kernels("pool").pool_groups(table_NV, rows_A, group_A, scores_hA, groups)


@_pool_groups.register_fake
def _(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, scores_hA: Tensor, groups: int) -> Tensor:
    return table_NV.new_empty(groups, table_NV.shape[1])


def _keep_groups(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4])


def _backward_of_groups(ctx, grad_GV):
    table_grad, scores_grad = _gradients(ctx, grad_GV, *ctx.saved_tensors)
    return table_grad, None, None, scores_grad, None


_pool_groups.register_autograd(_backward_of_groups, setup_context=_keep_groups)


# --- Gradients --------------------------------------------------------------------------------------------------------


def _gradients(
    ctx, grad_GV: Tensor, table_NV: Tensor, rows_A: Tensor, group_A: Tensor, scores_hA: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Those that autograd asks for, of the table and of the scores; both operators have them at places 0 and 3."""
    table_grad = torch.zeros_like(table_NV, dtype=wide_type(table_NV)) if ctx.needs_input_grad[0] else None
    scores_need_grad = ctx.needs_input_grad[3]
    scores_grad = backward_operator(
        grad_GV.contiguous(), table_NV, rows_A, group_A, scores_hA, table_grad, scores_need_grad, []
    )
    return (
        None if table_grad is None else table_grad.to(table_NV.dtype),
        scores_grad if scores_need_grad else None,
    )

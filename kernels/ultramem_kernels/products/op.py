"""``multiply_rows`` and ``multiply_groups``: checks, the torch operators, and what runs on which device.

A CPU tensor takes the torch path and a CUDA tensor the Triton kernel, which is imported when the first one comes. There
is no falling back from one to the other. The gradients are weighted sums: operators of ``pool``.
"""

import torch
from torch import Tensor

from ultramem_kernels import arguments
from ultramem_kernels.pool import group_of, pool, pool_backward, pool_groups
from ultramem_kernels.precision import wide_type
from ultramem_kernels.products import torch_path
from ultramem_kernels.triton_kernels import triton_kernels

# Letters: N rows of the table, V its columns; T tokens, K picks per token; A picks, G groups of them.


def multiply_rows(table_NV: Tensor, rows_TK: Tensor, vectors_TV: Tensor) -> Tensor:
    """The inner product of each picked row with its token's vector; see ``multiply_rows_reference``. Differentiable.

    Args:
        table_NV: bf16, fp32 or (CPU only) fp64, contiguous.
        rows_TK: int32 or int64, in [0, N).
        vectors_TV: One for each token, in the type of the table.

    Returns:
        products_TK, summed in fp32 and left so; fp64 if the table is.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    arguments.need_shape("rows_TK", rows_TK, ("T", "K"))
    _check(table_NV, rows_TK, "vectors_TV", vectors_TV, rows_TK.shape[0])
    return _multiply_rows(table_NV, rows_TK, vectors_TV)


def multiply_groups(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor) -> Tensor:
    """The same for picks of any groups; see ``multiply_groups_reference``. Differentiable.

    Args:
        table_NV: As for ``multiply_rows``.
        rows_A: int32 or int64, in [0, N).
        group_A: int64, in ascending order, in [0, G).
        vectors_GV: One for each group, in the type of the table.

    Returns:
        products_A, as those of ``multiply_rows``.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    arguments.need_shape("rows_A", rows_A, ("A",))
    _check(table_NV, rows_A, "vectors_GV", vectors_GV, "G")
    arguments.need_dtype("group_A", group_A, (torch.int64,))
    arguments.need_shape("group_A", group_A, (rows_A.shape[0],))
    arguments.need_same_device({"table_NV": table_NV, "group_A": group_A})
    arguments.need_in_range("group_A", group_A, vectors_GV.shape[0])
    return _multiply_groups(table_NV, rows_A, group_A, vectors_GV)


def _check(table_NV: Tensor, rows: Tensor, name: str, vectors: Tensor, count: int | str) -> None:
    arguments.need_table("table_NV", table_NV)
    arguments.need_dtype("rows", rows, arguments.INTEGERS)
    arguments.need_dtype(name, vectors, (table_NV.dtype,))
    arguments.need_shape(name, vectors, (count, table_NV.shape[1]))
    arguments.need_same_device({"table_NV": table_NV, "rows": rows, name: vectors})
    arguments.need_in_range("rows", rows, table_NV.shape[0])


@torch.library.custom_op("ultramem::multiply_rows", mutates_args=(), device_types="cpu")
def _multiply_rows(table_NV: Tensor, rows_TK: Tensor, vectors_TV: Tensor) -> Tensor:
    return torch_path.multiply_rows(table_NV, rows_TK, vectors_TV)


@_multiply_rows.register_kernel("cuda")
def _(table_NV: Tensor, rows_TK: Tensor, vectors_TV: Tensor) -> Tensor:
    return triton_kernels("products").multiply_rows(table_NV, rows_TK, vectors_TV)


@_multiply_rows.register_fake
def _(table_NV: Tensor, rows_TK: Tensor, vectors_TV: Tensor) -> Tensor:
    return table_NV.new_empty(rows_TK.shape, dtype=wide_type(table_NV))


@torch.library.custom_op("ultramem::multiply_groups", mutates_args=(), device_types="cpu")
def _multiply_groups(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor) -> Tensor:
    return torch_path.multiply_groups(table_NV, rows_A, group_A, vectors_GV)


@_multiply_groups.register_kernel("cuda")
def _(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor) -> Tensor:
    return triton_kernels("products").multiply_groups(table_NV, rows_A, group_A, vectors_GV)


@_multiply_groups.register_fake
def _(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor) -> Tensor:
    return table_NV.new_empty(rows_A.shape, dtype=wide_type(table_NV))


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward_of_rows(ctx, grad_TK):
    table_NV, rows_TK, vectors_TV = ctx.saved_tensors
    to_table, _, to_vectors = ctx.needs_input_grad
    one_block_TK = torch.zeros_like(rows_TK, dtype=torch.uint8)
    vectors_grad = None
    if to_vectors:
        vectors_grad = pool(table_NV, rows_TK, one_block_TK, grad_TK.unsqueeze(0), 1).squeeze(1)
    if not to_table:
        return None, None, vectors_grad
    group_A = group_of(one_block_TK, 1)
    return _table_gradient(table_NV, rows_TK.reshape(-1), group_A, vectors_TV, grad_TK.reshape(-1)), None, vectors_grad


def _backward_of_groups(ctx, grad_A):
    table_NV, rows_A, group_A, vectors_GV = ctx.saved_tensors
    to_table, _, _, to_vectors = ctx.needs_input_grad
    vectors_grad = None
    if to_vectors:
        vectors_grad = pool_groups(table_NV, rows_A, group_A, grad_A.unsqueeze(0), vectors_GV.shape[0])
    if not to_table:
        return None, None, None, vectors_grad
    return _table_gradient(table_NV, rows_A, group_A, vectors_GV, grad_A), None, None, vectors_grad


def _table_gradient(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor, grad_A: Tensor) -> Tensor:
    """A dense one: each pick adds its vector, times the gradient of their product."""
    grad_NV = torch.zeros_like(table_NV, dtype=wide_type(table_NV))
    pool_backward(
        vectors_GV,
        table_NV,
        rows_A,
        group_A,
        grad_A.unsqueeze(0),
        table_grad_NV=grad_NV,
        scores_need_grad=False,
    )
    return grad_NV.to(table_NV.dtype)


_multiply_rows.register_autograd(_backward_of_rows, setup_context=_keep)
_multiply_groups.register_autograd(_backward_of_groups, setup_context=_keep)

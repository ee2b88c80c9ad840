"""Rows of a table for those who read them: fetched, and where their gradients go."""

import torch
from torch import Tensor

from ultramem_kernels.pool import fetch_rows
from ultramem_kernels.precision import wide_type

# Letters: n, v this rank's rows and columns; T tokens, K picks per token.

PART_ELEMENTS = 2**19
"""Rows are multiplied so many elements at a time, 2 MiB in fp32, which stay in a CPU's cache."""
CUDA_PART_ELEMENTS = 2**24
"""64 MiB: enough to keep a GPU busy, where what all picks read would be gigabytes."""


def parts(rows: Tensor, width: int) -> list[slice]:
    """Consecutive entries of ``rows`` whose rows, ``width`` wide, hold the elements of a part together; one at least.

    Args:
        rows: Row numbers, [T, K] or one after the other.
        width: Columns read of each.
    """
    elements = CUDA_PART_ELEMENTS if rows.is_cuda else PART_ELEMENTS
    size = max(1, elements // max(1, rows[:1].numel() * width))
    return [slice(start, start + size) for start in range(0, rows.shape[0], size)]


def take_rows(table_nv: Tensor, rows: Tensor) -> Tensor:
    """[*rows.shape, v]."""
    flat = rows.reshape(-1)
    ahead = table_nv.device.type == "cpu" and table_nv.is_contiguous()
    read = fetch_rows(table_nv, flat) if ahead else table_nv.index_select(0, flat)
    return read.view(*rows.shape, table_nv.shape[1])


def gradient_of(table_nv: Tensor) -> Tensor:
    """Where to add gradients of rows: Megatron's ``main_grad``, or a new tensor without it."""
    main_grad = getattr(table_nv, "main_grad", None)
    if main_grad is not None:
        return main_grad
    return torch.zeros(table_nv.shape, dtype=wide_type(table_nv), device=table_nv.device)


def handed_over(target_nv: Tensor, table_nv: Tensor) -> Tensor:
    """What autograd gets as the table's gradient: ``target_nv``, or a placeholder where that is ``main_grad``."""
    if target_nv is not getattr(table_nv, "main_grad", None):
        return target_nv.to(table_nv.dtype)
    table_nv.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    table_nv.grad = None  # DDP's hook takes the placeholder away; without it the next would be added to no memory
    return _without_storage(table_nv)


def add_rows(target_nv: Tensor, rows: Tensor, grad: Tensor) -> None:
    """Add [*rows.shape, v] to the rows of ``target_nv``, in its type."""
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

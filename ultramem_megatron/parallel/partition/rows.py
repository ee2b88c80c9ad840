"""Rows of a table for those who read them: fetched, and where their gradients go."""

import torch
from torch import Tensor

from ultramem_kernels import pool as kernels
from ultramem_kernels.precision import wide_type
from ultramem_megatron.parallel.partition.row_plan import PlanAhead, taken

# Letters: n, v this rank's rows and columns.


def take_rows(table_nv: Tensor, rows: Tensor) -> Tensor:
    """[*rows.shape, v]."""
    flat = rows.reshape(-1)
    ahead = table_nv.device.type == "cpu" and table_nv.is_contiguous()
    read = kernels.fetch_rows(table_nv, flat) if ahead else table_nv.index_select(0, flat)
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


def add_rows(target_nv: Tensor, rows: Tensor, grad: Tensor, plan: PlanAhead | None = None) -> None:
    """Add [*rows.shape, v] to the rows of ``target_nv``, in its type. ``plan``: that of ``rows``."""
    flat = grad.reshape(-1, target_nv.shape[1])
    kernels.add_rows(target_nv, rows.reshape(-1), flat, taken(plan))


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

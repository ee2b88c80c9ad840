"""``update_table``: checks, and the torch operator."""

from dataclasses import astuple

import torch
from torch import Tensor

from ultramem_kernels import arguments
from ultramem_kernels.table_update import torch_path
from ultramem_kernels.table_update.settings import AdamW
from ultramem_kernels.triton_kernels import triton_kernels

WIDE = (torch.float32,)
NARROW_TOO = (torch.bfloat16, torch.float32)


def update_table(
    weight: Tensor,
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    grad: Tensor,
    step: int,
    settings: AdamW,
    *,
    touched_only: bool = False,
    clear_grad: bool = True,
) -> None:
    """One step, in place; see ``update_table_reference``. Rows mean nothing to it: any range of a table will do.

    Args:
        weight: bf16 or fp32, of any shape, contiguous, as all of them.
        master: fp32; may be the weight itself, if that is fp32.
        mean: fp32 or bf16.
        square: fp32 or bf16.
        grad: fp32.
        step: From 1.
        settings: Rates.
        touched_only: Elements whose gradient is exactly zero keep master and moments; nothing but their gradient is
            read where there are many together.
        clear_grad: Whether the gradient is zero afterwards, or as it was.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    tensors = {"weight": weight, "master": master, "mean": mean, "square": square, "grad": grad}
    allowed = {"master": WIDE, "grad": WIDE}
    for name, tensor in tensors.items():
        arguments.need_dtype(name, tensor, allowed.get(name, NARROW_TOO))
        arguments.need_shape(name, tensor, tuple(weight.shape))
        arguments.need_contiguous(name, tensor)
    arguments.need_same_device(tensors)
    if step < 1:
        raise arguments.ArgumentError(f"step is {step}; expected 1 or more")
    # an operator may not be given the same memory twice
    shared = master.data_ptr() == weight.data_ptr()
    flat = [x.view(-1) for x in (master, mean, square, grad)]
    _update_table(
        None if shared else weight.view(-1),
        *flat,
        step,
        list(astuple(settings)),
        touched_only,
        clear_grad,
    )


MUTATED = ("weight", "master", "mean", "square", "grad")


@torch.library.custom_op("ultramem::update_table", mutates_args=MUTATED, device_types="cpu")
def _update_table(
    weight: Tensor | None,
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    grad: Tensor,
    step: int,
    rates: list[float],
    touched_only: bool,
    clear_grad: bool,
) -> None:
    torch_path.update(
        weight, master, mean, square, grad, step, AdamW(*rates), touched_only=touched_only, clear_grad=clear_grad
    )


@_update_table.register_kernel("cuda")
def _(
    weight: Tensor | None,
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    grad: Tensor,
    step: int,
    rates: list[float],
    touched_only: bool,
    clear_grad: bool,
) -> None:
    triton_kernels("table_update").update(
        weight, master, mean, square, grad, step, AdamW(*rates), touched_only=touched_only, clear_grad=clear_grad
    )


@_update_table.register_fake
def _(
    weight: Tensor | None,
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    grad: Tensor,
    step: int,
    rates: list[float],
    touched_only: bool,
    clear_grad: bool,
) -> None:
    return None

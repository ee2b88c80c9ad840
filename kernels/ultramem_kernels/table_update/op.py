"""``update_table``: checks, the torch operator, and the CPU's part by part."""

from dataclasses import astuple

import torch
from torch import Tensor

from ultramem_kernels import arguments
from ultramem_kernels.table_update.reference import update_table_reference
from ultramem_kernels.table_update.settings import AdamW
from ultramem_kernels.triton_kernels import triton_kernels

# Letters: N rows of the table, V value dimension.

PART_ELEMENTS = 2**17
"""Elements updated at a time on a CPU: the five tensors and the temporaries of a part stay in its cache."""


def update_table(
    weight_NV: Tensor,
    master_NV: Tensor,
    mean_NV: Tensor,
    square_NV: Tensor,
    grad_NV: Tensor,
    step: int,
    settings: AdamW,
) -> None:
    """One dense step, in place; see ``update_table_reference``.

    Args:
        weight_NV: bf16 or fp32, contiguous, as all of them.
        master_NV: fp32; may be the weight itself, if that is fp32.
        mean_NV: fp32.
        square_NV: fp32.
        grad_NV: fp32; cleared.
        step: From 1.
        settings: Rates.

    Raises:
        ArgumentError: Names the argument, and what was expected.
    """
    tensors = {
        "weight_NV": weight_NV,
        "master_NV": master_NV,
        "mean_NV": mean_NV,
        "square_NV": square_NV,
        "grad_NV": grad_NV,
    }
    for name, tensor in tensors.items():
        allowed = (torch.bfloat16, torch.float32) if tensor is weight_NV else (torch.float32,)
        arguments.need_dtype(name, tensor, allowed)
        arguments.need_shape(name, tensor, tuple(weight_NV.shape))
        arguments.need_rows_together(name, tensor)
    arguments.need_same_device(tensors)
    if step < 1:
        raise arguments.ArgumentError(f"step is {step}; expected 1 or more")
    # an operator may not be given the same memory twice
    shared = master_NV.data_ptr() == weight_NV.data_ptr()
    _update_table(
        None if shared else weight_NV,
        master_NV,
        mean_NV,
        square_NV,
        grad_NV,
        step,
        list(astuple(settings)),
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
) -> None:
    settings = AdamW(*rates)
    flat = [x.view(-1) for x in (master if weight is None else weight, master, mean, square, grad)]
    for start in range(0, master.numel(), PART_ELEMENTS):
        of_part = [x[start : start + PART_ELEMENTS] for x in flat]
        update_table_reference(of_part[0], of_part[1], of_part[2], of_part[3], of_part[4], step, settings)


@_update_table.register_kernel("cuda")
def _(
    weight: Tensor | None,
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    grad: Tensor,
    step: int,
    rates: list[float],
) -> None:
    settings = AdamW(*rates)
    triton_kernels("table_update").update_table(weight, master, mean, square, grad, step, settings)


@_update_table.register_fake
def _(
    weight: Tensor | None,
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    grad: Tensor,
    step: int,
    rates: list[float],
) -> None:
    return None

"""What the public operations say to arguments that they cannot take.

Each check names the argument, what it is and what was expected. Values are looked at only when the environment variable
``ULTRAMEM_CHECK_INDICES`` is 1: a GPU would have to wait for them.
"""

import os
from collections.abc import Mapping

import torch
from torch import Tensor

CHECK_INDICES = "ULTRAMEM_CHECK_INDICES"
INTEGERS = (torch.int32, torch.int64)
FLOATS = (torch.bfloat16, torch.float32, torch.float64)


class ArgumentError(ValueError):
    """An operation was called with something that it cannot take."""


def need_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Refuse another type."""
    if tensor.dtype not in allowed:
        raise ArgumentError(f"{name} is {tensor.dtype}; expected {' or '.join(str(dtype) for dtype in allowed)}")


def need_shape(name: str, tensor: Tensor, expected: tuple[int | str, ...]) -> None:
    """Refuse another shape; a letter in ``expected`` stands for any size."""
    fits = tensor.dim() == len(expected) and all(
        isinstance(want, str) or size == want for size, want in zip(tensor.shape, expected, strict=True)
    )
    if not fits:
        raise ArgumentError(
            f"{name} has shape {list(tensor.shape)}; expected [{', '.join(str(size) for size in expected)}]"
        )


def need_same_device(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of several devices; the first one counts."""
    (first, leader), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != leader.device:
            raise ArgumentError(f"{name} is on {tensor.device}; expected {leader.device}, where {first} is")


def need_rows_together(name: str, table_NV: Tensor) -> None:
    """Refuse a table whose rows do not lie one after the other."""
    if not table_NV.is_contiguous():
        raise ArgumentError(
            f"{name} has strides {list(table_NV.stride())} for shape {list(table_NV.shape)}; expected a contiguous "
            f"table, strides {[table_NV.shape[1], 1]}: rows are read whole, one after the other"
        )


def need_table(name: str, table_NV: Tensor) -> None:
    """Refuse what rows cannot be read from: another type than kernels have on its device, or rows that are torn."""
    need_dtype(name, table_NV, FLOATS)
    if table_NV.is_cuda:
        need_dtype(f"{name} on a CUDA device", table_NV, (torch.bfloat16, torch.float32))
    need_shape(name, table_NV, ("N", "V"))
    need_rows_together(name, table_NV)


def need_contiguous(name: str, tensor: Tensor) -> None:
    """Refuse a tensor whose elements do not lie one after the other."""
    if not tensor.is_contiguous():
        raise ArgumentError(
            f"{name} has strides {list(tensor.stride())} for shape {list(tensor.shape)}; expected a contiguous tensor"
        )


def need_in_range(name: str, numbers: Tensor, end: int) -> None:
    """Refuse numbers outside of [0, end), if ``ULTRAMEM_CHECK_INDICES`` is 1. Waits for the device then."""
    if os.environ.get(CHECK_INDICES) != "1" or numbers.numel() == 0:
        return
    low, high = (int(number) for number in torch.aminmax(numbers))
    if low < 0 or high >= end:
        raise ArgumentError(f"{name} holds numbers from {low} to {high}; expected [0, {end})")

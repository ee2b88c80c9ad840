"""``F.linear`` by oneDNN where PyTorch has it, and MKL otherwise: one matrix product, twice as fast on some CPUs.

PyTorch hands fp32 products to MKL, which uses half the width of an AMD processor's vector units: 1024 x 1024 x 512
takes 4.5 ms, and 2.2 ms by oneDNN (2 cores of an EPYC of family 26, torch 2.13, 2026-11-24). oneDNN is in the x86
builds of PyTorch, but of fp32 products only Inductor hands it any; its operator is used here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Letters: T rows, I inputs, O outputs.

LEAST_PRODUCTS = 2**23
"""Multiplications below which MKL is as fast, since each call of oneDNN looks up its plan."""


def linear(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """[T, I] times [O, I] transposed -> [T, O]. Differentiable, once.

    Args:
        x_TI: Of any type and device; oneDNN is asked for fp32 on a CPU alone.
        weight_OI: The same type.
    """
    return _Linear.apply(x_TI, weight_OI) if _for_onednn(x_TI, weight_OI) else F.linear(x_TI, weight_OI)


def product(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """``linear`` without a gradient."""
    if not _for_onednn(x_TI, weight_OI):
        return x_TI @ weight_OI.t()
    # of anything but a whole matrix or its transpose oneDNN's reference takes care, a thousand times as slowly
    x_TI, weight_OI = _whole(x_TI), _whole(weight_OI)
    return torch.ops.mkldnn._linear_pointwise.default(x_TI, weight_OI, None, "none", [], "")


def _for_onednn(x_TI: Tensor, weight_OI: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x_TI.device.type == "cpu"
        and x_TI.dtype is torch.float32
        and weight_OI.dtype is torch.float32
        and x_TI.numel() * weight_OI.shape[0] >= LEAST_PRODUCTS
        and torch.backends.mkldnn.is_available()
    )


def _whole(x_TI: Tensor) -> Tensor:
    return x_TI if x_TI.is_contiguous() or x_TI.t().is_contiguous() else x_TI.contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        return product(x_TI, weight_OI)

    @staticmethod
    def backward(ctx, grad_TO: Tensor):
        x_TI, weight_OI = ctx.saved_tensors
        x_grad = product(grad_TO, weight_OI.t()) if ctx.needs_input_grad[0] else None
        weight_grad = product(grad_TO.t(), x_TI.t()) if ctx.needs_input_grad[1] else None
        return x_grad, weight_grad

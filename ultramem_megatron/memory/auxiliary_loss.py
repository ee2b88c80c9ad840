"""The loss that keeps a Tucker core near rank 1 (paper eq. 11-12), and its way into the gradients."""

import torch
from torch import Tensor

from ultramem_kernels.precision import widened


def core_penalty(core: Tensor, weight: float, margin: float) -> Tensor:
    """alpha / (r - 1) * sum over i >= 2 of max(0, sigma_i - tau) ** 2, summed over heads.

    Args:
        core: [H, h, r, r]; the singular values are those of the sum over h.
        weight: alpha.
        margin: tau.

    Returns:
        A scalar in fp32; 0 for rank 1.
    """
    rank = core.shape[-1]
    if rank == 1:
        return core.sum() * 0
    singular_Hr = torch.linalg.svdvals(widened(core).sum(dim=1))
    return weight / (rank - 1) * (singular_Hr[:, 1:] - margin).clamp(min=0).square().sum()


def attach_loss(x: Tensor, loss: Tensor, scale: float) -> Tensor:
    """``x``, and in the backward pass ``loss`` gets the gradient ``scale``.

    The penalty depends on no token, and in a pipeline the stage that computes the language-model loss does not hold
    the core; so it enters where it is made (as MoE's auxiliary loss does in Megatron).
    """
    return _Attach.apply(x, loss, scale)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (loss,) = ctx.saved_tensors
        return grad, torch.full_like(loss, ctx.scale), None

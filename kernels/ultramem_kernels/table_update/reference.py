"""The meaning of ``update_table``, in plain PyTorch."""

import torch
from torch import Tensor

from ultramem_kernels.table_update.settings import AdamW


@torch.no_grad()
def update_table_reference(
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
    """AdamW on the fp32 master, whose rounded copy is the weight.

    Args:
        weight: bf16 or fp32, written; what is not touched must be the rounded master before.
        master: fp32, of the same shape, as all of them.
        mean: fp32 or bf16, first moment; computed in fp32.
        square: fp32 or bf16, second moment.
        grad: fp32.
        step: From 1.
        settings: Rates.
        touched_only: Elements whose gradient is exactly zero keep master and moments.
        clear_grad: Whether the gradient is zero afterwards, or as it was.
    """
    touched = grad != 0 if touched_only else torch.ones_like(grad, dtype=torch.bool)
    new_mean = settings.beta1 * mean.float() + (1 - settings.beta1) * grad
    new_square = settings.beta2 * square.float() + (1 - settings.beta2) * grad**2
    first, second = settings.corrections(step)
    move = (new_mean / first) / ((new_square / second).sqrt() + settings.epsilon)
    decayed = master * (1 - settings.learning_rate * settings.weight_decay)
    new_master = decayed - settings.learning_rate * move
    for tensor, new in ((mean, new_mean), (square, new_square), (master, new_master)):
        tensor.copy_(torch.where(touched, new.to(tensor.dtype), tensor))
    weight.copy_(master)
    if clear_grad:
        grad.zero_()

"""The meaning of ``update_table``, in plain PyTorch."""

import torch
from torch import Tensor

from ultramem_kernels.table_update.settings import AdamW

# Letters: N rows of the table, V value dimension.


@torch.no_grad()
def update_table_reference(
    weight_NV: Tensor,
    master_NV: Tensor,
    mean_NV: Tensor,
    square_NV: Tensor,
    grad_NV: Tensor,
    step: int,
    settings: AdamW,
) -> None:
    """AdamW on the fp32 master, whose rounded copy is the weight. The gradient is zero afterwards.

    Args:
        weight_NV: bf16 or fp32, written.
        master_NV: fp32.
        mean_NV: fp32, first moment.
        square_NV: fp32, second moment.
        grad_NV: fp32.
        step: From 1.
        settings: Rates.
    """
    mean_NV.copy_(settings.beta1 * mean_NV + (1 - settings.beta1) * grad_NV)
    square_NV.copy_(settings.beta2 * square_NV + (1 - settings.beta2) * grad_NV**2)
    first, second = settings.corrections(step)
    move_NV = (mean_NV / first) / ((square_NV / second).sqrt() + settings.epsilon)
    decayed_NV = master_NV * (1 - settings.learning_rate * settings.weight_decay)
    master_NV.copy_(decayed_NV - settings.learning_rate * move_NV)
    weight_NV.copy_(master_NV)
    grad_NV.zero_()

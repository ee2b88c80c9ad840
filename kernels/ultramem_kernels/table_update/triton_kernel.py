"""``update_table`` on CUDA devices: a pure stream of 30 bytes an element, and 4 more to clear the gradient."""

import triton
import triton.language as tl
from torch import Tensor

from ultramem_kernels.table_update.settings import AdamW

TILE = 1024
WARPS = 4


@triton.jit
def update_kernel(
    weight_ptr,
    master_ptr,  # fp32
    mean_ptr,  # fp32
    square_ptr,  # fp32
    grad_ptr,  # fp32, cleared
    count,
    decay,  # 1 - learning rate * weight decay
    move,  # learning rate / correction of the mean
    beta1,
    beta2,
    root_correction,  # 1 / sqrt of the correction of the square
    epsilon,
    TILE: tl.constexpr,
    WITH_WEIGHT: tl.constexpr,
):
    """One program: ``TILE`` elements."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = place < count
    grad = tl.load(grad_ptr + place, mask=inside, other=0.0)
    mean = beta1 * tl.load(mean_ptr + place, mask=inside, other=0.0) + (1 - beta1) * grad
    square = beta2 * tl.load(square_ptr + place, mask=inside, other=0.0) + (1 - beta2) * grad * grad
    master = tl.load(master_ptr + place, mask=inside, other=0.0)
    master = master * decay - move * mean / (tl.sqrt(square) * root_correction + epsilon)
    tl.store(mean_ptr + place, mean, mask=inside)
    tl.store(square_ptr + place, square, mask=inside)
    tl.store(master_ptr + place, master, mask=inside)
    if WITH_WEIGHT:
        tl.store(weight_ptr + place, master.to(weight_ptr.dtype.element_ty), mask=inside)
    tl.store(grad_ptr + place, tl.zeros((TILE,), dtype=tl.float32), mask=inside)


def update_table(
    weight: Tensor | None, master: Tensor, mean: Tensor, square: Tensor, grad: Tensor, step: int, settings: AdamW
) -> None:
    """Arguments as in ``op.update_table``; no weight where it is the master."""
    first, second = settings.corrections(step)
    if master.numel():
        update_kernel[(triton.cdiv(master.numel(), TILE),)](
            master if weight is None else weight,
            master,
            mean,
            square,
            grad,
            master.numel(),
            1 - settings.learning_rate * settings.weight_decay,
            settings.learning_rate / first,
            settings.beta1,
            settings.beta2,
            second**-0.5,
            settings.epsilon,
            TILE=TILE,
            WITH_WEIGHT=weight is not None,
            num_warps=WARPS,
        )

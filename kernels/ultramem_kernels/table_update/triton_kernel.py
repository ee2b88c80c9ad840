"""``update_table`` on CUDA devices: a pure stream of 30 bytes an element, and 4 more to clear the gradient.

Touched elements only, a tile in which there is none costs the 4 bytes of its gradient. Nothing waits for the device.
"""

import triton
import triton.language as tl
from torch import Tensor

from ultramem_kernels.table_update.settings import AdamW

TILE = 1024
TOUCHED_TILE = 512
"""A row or a few: where one element is touched, all of the tile is read. 128 bits a thread."""
WARPS = 4


@triton.jit
def update_kernel(
    weight_ptr,
    master_ptr,  # fp32
    mean_ptr,  # fp32 or bf16
    square_ptr,  # fp32 or bf16
    grad_ptr,  # fp32
    count,
    decay,  # 1 - learning rate * weight decay
    move,  # learning rate / correction of the mean
    beta1,
    beta2,
    root_correction,  # 1 / sqrt of the correction of the square
    epsilon,
    TILE: tl.constexpr,
    WITH_WEIGHT: tl.constexpr,
    TOUCHED_ONLY: tl.constexpr,
    CLEAR_GRAD: tl.constexpr,
):
    """One program: ``TILE`` elements; none of them is read further where none is touched."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = place < count
    grad = tl.load(grad_ptr + place, mask=inside, other=0.0)
    if TOUCHED_ONLY:
        inside = inside & (tl.max((grad != 0).to(tl.int32), axis=0) > 0)
    mean_before = tl.load(mean_ptr + place, mask=inside, other=0.0).to(tl.float32)
    square_before = tl.load(square_ptr + place, mask=inside, other=0.0).to(tl.float32)
    master_before = tl.load(master_ptr + place, mask=inside, other=0.0)
    mean = beta1 * mean_before + (1 - beta1) * grad
    square = beta2 * square_before + (1 - beta2) * grad * grad
    master = master_before * decay - move * mean / (tl.sqrt(square) * root_correction + epsilon)
    if TOUCHED_ONLY:
        # chosen here and stored whole: a mask by element would tear the wide stores
        touched = grad != 0
        mean = tl.where(touched, mean, mean_before)
        square = tl.where(touched, square, square_before)
        master = tl.where(touched, master, master_before)
    tl.store(mean_ptr + place, mean.to(mean_ptr.dtype.element_ty), mask=inside)
    tl.store(square_ptr + place, square.to(square_ptr.dtype.element_ty), mask=inside)
    tl.store(master_ptr + place, master, mask=inside)
    if WITH_WEIGHT:
        tl.store(weight_ptr + place, master.to(weight_ptr.dtype.element_ty), mask=inside)
    if CLEAR_GRAD:
        tl.store(grad_ptr + place, tl.zeros_like(grad), mask=inside)


def update(
    weight: Tensor | None,
    master: Tensor,
    mean: Tensor,
    square: Tensor,
    grad: Tensor,
    step: int,
    settings: AdamW,
    *,
    touched_only: bool,
    clear_grad: bool,
) -> None:
    """Arguments as in ``op.update_table``; no weight where it is the master."""
    first, second = settings.corrections(step)
    tile = TOUCHED_TILE if touched_only else TILE
    if master.numel():
        update_kernel[(triton.cdiv(master.numel(), tile),)](
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
            TILE=tile,
            WITH_WEIGHT=weight is not None,
            TOUCHED_ONLY=touched_only,
            CLEAR_GRAD=clear_grad,
            num_warps=WARPS,
        )

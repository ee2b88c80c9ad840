"""``best_candidates`` on CUDA devices: projection and selection in one pass over the scores."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem_kernels.arguments import ArgumentError
from ultramem_kernels.selection_triton import ordered, select

# Letters: B batches, r components of a score, T tokens, S keys of a side, m kept.

MAX_KEYS = 16384
"""Keys of a side that the registers of one program can hold."""


@triton.jit
def candidates_kernel(
    found_ptr,  # int64 [B, T, m]
    scores_ptr,  # fp32 [B, r, T, S]
    direction_ptr,  # fp32 [B, r]
    tokens,
    side,
    m,
    COMPONENTS: tl.constexpr,
    TILE: tl.constexpr,  # a power of two, at least S
):
    """One program: one token of one batch."""
    token = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    key = tl.arange(0, TILE)
    is_key = key < side
    projected = tl.zeros((TILE,), dtype=tl.float32)
    for component in tl.static_range(COMPONENTS):
        weight = tl.load(direction_ptr + batch * COMPONENTS + component)
        place = ((batch * COMPONENTS + component) * tokens + token) * side + key
        projected += weight * tl.load(scores_ptr + place, mask=is_key, other=0.0)
    chosen, slot = select(ordered(projected), is_key, m)
    tl.store(found_ptr + (batch * tokens + token) * m + slot, key.to(tl.int64), mask=chosen)


def selection_warps(tile: int) -> int:
    """Warps that hold ``tile`` numbers, up to 32 a thread."""
    return min(16, max(4, tile // 1024))


def best_candidates(scores_BrTS: Tensor, direction_Br: Tensor, m: int) -> Tensor:
    """Arguments as in ``op.best_candidates``; fp32.

    Raises:
        ArgumentError: More keys than a program can hold.
    """
    batches, components, tokens, side = scores_BrTS.shape
    if side > MAX_KEYS or scores_BrTS.dtype is not torch.float32:
        raise ArgumentError(f"scores_BrTS is {scores_BrTS.dtype} of {side} keys; expected fp32 of up to {MAX_KEYS}")
    found_BTm = scores_BrTS.new_empty((batches, tokens, m), dtype=torch.int64)
    tile = triton.next_power_of_2(side)
    if found_BTm.numel():
        candidates_kernel[(tokens, batches)](
            found_BTm,
            scores_BrTS.contiguous(),
            direction_Br.contiguous(),
            tokens,
            side,
            m,
            COMPONENTS=components,
            TILE=tile,
            num_warps=selection_warps(tile),
        )
    return found_BTm

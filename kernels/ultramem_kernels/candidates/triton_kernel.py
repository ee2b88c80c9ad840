"""``best_candidates`` on CUDA devices: projection and selection in one pass over the scores.

More keys than one program can hold are cut into slabs; the best of each slab compete once more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem_kernels.arguments import ArgumentError
from ultramem_kernels.selection_triton import ordered, select

# Letters: B batches, r components of a score, T tokens, S keys of a side, m kept, L slabs, k kept of a slab.

SLAB_KEYS = 8192
"""Keys that the registers of one program hold. Twice as many spill."""


@triton.jit
def candidates_kernel(
    found_ptr,  # int64 [B, T, L, k]
    values_ptr,  # fp32 [B, T, L, k], written where there are several slabs
    scores_ptr,  # fp32 [B, r, T, S]
    direction_ptr,  # fp32 [B, r]
    tokens,
    side,
    slab,  # keys of a slab; the last may have fewer
    kept,
    COMPONENTS: tl.constexpr,
    TILE: tl.constexpr,  # a power of two, at least the slab
    GROUPS: tl.constexpr,  # of ``select``
    WITH_VALUES: tl.constexpr,
):
    """One program: one slab of one token of one batch."""
    token = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(2) * slab
    key = tl.arange(0, TILE)  # of the slab
    is_key = key < tl.minimum(slab, side - first)
    projected = tl.zeros((TILE,), dtype=tl.float32)
    for component in tl.static_range(COMPONENTS):
        weight = tl.load(direction_ptr + batch * COMPONENTS + component)
        place = ((batch * COMPONENTS + component) * tokens + token) * side + first + key
        projected += weight * tl.load(scores_ptr + place, mask=is_key, other=0.0)
    chosen, slot = select(ordered(projected), is_key, kept, GROUPS)
    target = ((batch * tokens + token) * tl.num_programs(2) + tl.program_id(2)) * kept + slot
    tl.store(found_ptr + target, (first + key).to(tl.int64), mask=chosen)
    if WITH_VALUES:
        tl.store(values_ptr + target, projected, mask=chosen)


def selection_warps(tile: int) -> int:
    """Warps that hold ``tile`` numbers, up to 16 a thread."""
    return min(16, max(4, tile // 512))


def best_candidates(scores_BrTS: Tensor, direction_Br: Tensor, m: int) -> Tensor:
    """Arguments as in ``op.best_candidates``; fp32.

    Raises:
        ArgumentError: Another type, or so many to keep that slabs would not make them fewer.
    """
    batches, components, tokens, side = scores_BrTS.shape
    if scores_BrTS.dtype is not torch.float32:
        raise ArgumentError(f"scores_BrTS is {scores_BrTS.dtype}; expected torch.float32 on a CUDA device")
    if side > SLAB_KEYS < 2 * m:
        raise ArgumentError(
            f"m is {m}; expected up to {SLAB_KEYS // 2} on a CUDA device, of more than {SLAB_KEYS} keys"
        )
    slab = min(side, SLAB_KEYS)
    slabs, kept, tile = triton.cdiv(side, slab), min(m, slab), triton.next_power_of_2(slab)
    found = scores_BrTS.new_zeros((batches, tokens, slabs, kept), dtype=torch.int64)
    # a last slab with fewer keys than are kept leaves these, which lose
    values = scores_BrTS.new_full((batches, tokens, slabs, kept) if slabs > 1 else (0,), -torch.inf)
    if found.numel():
        candidates_kernel[(tokens, batches, slabs)](
            found,
            values,
            scores_BrTS.contiguous(),
            direction_Br.contiguous(),
            tokens,
            side,
            slab,
            kept,
            COMPONENTS=components,
            TILE=tile,
            GROUPS=triton.next_power_of_2(kept),
            WITH_VALUES=slabs > 1,
            num_warps=selection_warps(tile),
        )
    if slabs > 1:
        # slabs and the keys in them ascend, so that a tie goes to the smaller key here too
        one = values.new_ones(1, 1)
        best = best_candidates(values.view(1, 1, batches * tokens, slabs * kept), one, m).view(batches, tokens, m)
        return found.flatten(2).gather(2, best)
    return found.view(batches, tokens, m)

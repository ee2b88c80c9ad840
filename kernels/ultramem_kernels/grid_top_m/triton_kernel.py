"""``grid_top_m`` on CUDA devices: the grid is computed in registers and never written.

A grid that one program cannot hold is cut into slabs of whole rows; the best of each slab compete once more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem_kernels.arguments import ArgumentError
from ultramem_kernels.candidates.triton_kernel import best_candidates
from ultramem_kernels.selection_triton import ordered, select

# Letters: T tokens, H heads, r components of a score, c candidates of a side, m kept, L slabs, k kept of a slab.

SLAB_PLACES = 8192
"""Places that the registers of one program hold: 90 x 90. Twice as many spill."""


@triton.jit
def grid_kernel(
    found_ptr,  # int64 [T * H, L, k]
    values_ptr,  # fp32 [T * H, L, k], written where there are several slabs
    rows_ptr,  # fp32 [T * H, r, c]
    columns_ptr,  # fp32 [T * H, r, c]
    core_ptr,  # fp32 [H, r, r]
    heads,
    kept,
    CANDIDATES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    SLAB: tl.constexpr,  # places of a slab: whole rows
    TILE: tl.constexpr,  # a power of two, at least SLAB
    WITH_VALUES: tl.constexpr,
):
    """One program: one slab of the grid of one token and head."""
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    in_slab = tl.arange(0, TILE)
    place = tl.program_id(1) * SLAB + in_slab
    is_place = (in_slab < SLAB) & (place < CANDIDATES * CANDIDATES)
    row = place // CANDIDATES
    column = place % CANDIDATES
    grid = tl.zeros((TILE,), dtype=tl.float32)
    base = program * COMPONENTS * CANDIDATES
    for b in tl.static_range(COMPONENTS):
        left = tl.zeros((TILE,), dtype=tl.float32)
        for a in tl.static_range(COMPONENTS):
            weight = tl.load(core_ptr + (head * COMPONENTS + a) * COMPONENTS + b)
            left += weight * tl.load(rows_ptr + base + a * CANDIDATES + row, mask=is_place, other=0.0)
        grid += left * tl.load(columns_ptr + base + b * CANDIDATES + column, mask=is_place, other=0.0)
    chosen, slot = select(ordered(grid), is_place, kept)
    target = (program * tl.num_programs(1) + tl.program_id(1)) * kept + slot
    tl.store(found_ptr + target, place.to(tl.int64), mask=chosen)
    if WITH_VALUES:
        tl.store(values_ptr + target, grid, mask=chosen)


def grid_warps(tile: int) -> int:
    """Warps that hold ``tile`` places, up to 16 a thread."""
    return min(16, max(4, tile // 512))


def slab_of(candidates: int) -> int:
    """Places of a slab: as many whole rows as a program holds."""
    return min(candidates, max(1, SLAB_PLACES // candidates)) * candidates


def grid_top_m(rows_THrc: Tensor, columns_THrc: Tensor, core_Hrr: Tensor, m: int) -> Tensor:
    """Arguments as in ``op.grid_top_m``; fp32.

    Raises:
        ArgumentError: Another type, or a row of the grid that a program cannot hold.
    """
    tokens, heads, components, candidates = rows_THrc.shape
    if candidates > SLAB_PLACES or rows_THrc.dtype is not torch.float32:
        raise ArgumentError(
            f"rows_THrc is {rows_THrc.dtype} of {candidates} candidates; expected torch.float32 of up to {SLAB_PLACES}"
        )
    slab = slab_of(candidates)
    slabs, kept = triton.cdiv(candidates**2, slab), min(m, slab)
    tile, programs = triton.next_power_of_2(slab), tokens * heads
    found = rows_THrc.new_zeros((programs, slabs, kept), dtype=torch.int64)
    # a last slab with fewer places than are kept leaves these, which lose
    values = rows_THrc.new_full((programs, slabs, kept) if slabs > 1 else (0,), -torch.inf)
    if programs:
        grid_kernel[(programs, slabs)](
            found,
            values,
            rows_THrc.contiguous(),
            columns_THrc.contiguous(),
            core_Hrr.contiguous(),
            heads,
            kept,
            CANDIDATES=candidates,
            COMPONENTS=components,
            SLAB=slab,
            TILE=tile,
            WITH_VALUES=slabs > 1,
            num_warps=grid_warps(tile),
        )
    if slabs > 1:
        # slabs and the places in them ascend, so that a tie goes to the smaller place here too
        best = best_candidates(values.view(1, 1, programs, -1), values.new_ones(1, 1), m)
        found = found.view(programs, -1).gather(1, best.squeeze(0))
    return found.view(tokens, heads, m)

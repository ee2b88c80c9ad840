"""``grid_top_m`` and ``best_slots`` on CUDA devices: the grid is computed in registers and never written.

A program that holds a whole grid also emits what its winners need. A grid that one program cannot hold is cut into
slabs of whole rows; the best of each slab compete once more.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem_kernels.arguments import ArgumentError
from ultramem_kernels.candidates.triton_kernel import best_candidates
from ultramem_kernels.grid_top_m.addresses import Addresses
from ultramem_kernels.grid_top_m.triton_epilogue import (
    BACKWARD_WARPS,
    CANDIDATES_AT_A_TIME,
    PICKS_AT_A_TIME,
    cores_grad_kernel,
    emit,
    emit_kernel,
    sides_grad_kernel,
)
from ultramem_kernels.selection_triton import ordered, select

# Letters: T tokens, H heads, r components of a score, c candidates of a side, m kept, L slabs, k kept of a slab.

SLAB_PLACES = 8192
"""Places that the registers of one program hold: 90 x 90. Twice as many spill."""


@triton.jit
def grid_kernel(
    found_ptr,  # int32 [T * H, L, k]
    values_ptr,  # fp32 [T * H, L, k], written where there are several slabs
    rows_ptr,  # fp32 [T * H, r, c], ``stride`` from one to the next, as the columns
    columns_ptr,
    core_ptr,  # fp32 [H, r, r], the sum of the cores
    stride,
    heads,
    kept,
    picked_ptr,  # the rest: of ``emit``
    blocks_ptr,
    scores_ptr,
    index_ptr,
    cores_ptr,
    offsets_ptr,
    side,
    num_rows,
    CANDIDATES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    SLAB: tl.constexpr,  # places of a slab: whole rows
    TILE: tl.constexpr,  # a power of two, at least SLAB
    GROUPS: tl.constexpr,  # of ``select``
    WITH_VALUES: tl.constexpr,
    EMIT: tl.constexpr,
    CORES: tl.constexpr,
    ROUNDS: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PICKS: tl.constexpr,
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
    base = program * stride
    for b in tl.static_range(COMPONENTS):
        left = tl.zeros((TILE,), dtype=tl.float32)
        for a in tl.static_range(COMPONENTS):
            weight = tl.load(core_ptr + (head * COMPONENTS + a) * COMPONENTS + b)
            left += weight * tl.load(rows_ptr + base + a * CANDIDATES + row, mask=is_place, other=0.0)
        grid += left * tl.load(columns_ptr + base + b * CANDIDATES + column, mask=is_place, other=0.0)
    chosen, slot = select(ordered(grid), is_place, kept, GROUPS)
    target = (program * tl.num_programs(1) + tl.program_id(1)) * kept + slot
    tl.store(found_ptr + target, place, mask=chosen)
    if WITH_VALUES:
        tl.store(values_ptr + target, grid, mask=chosen)
    if EMIT:
        # winners lie scattered over the threads: they are read back, one a thread
        tl.debug_barrier()
        # fmt: off
        emit(picked_ptr, blocks_ptr, scores_ptr, found_ptr, rows_ptr, index_ptr, cores_ptr, offsets_ptr, side, num_rows,
             heads, program, tl.num_programs(0), kept,
             CANDIDATES, COMPONENTS, CORES, ROUNDS, ONE_BLOCK, PICKS)
        # fmt: on


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
    found_THm, _ = _choose(rows_THrc.contiguous(), columns_THrc.contiguous(), core_Hrr.contiguous(), m, None)
    return found_THm.long()


def best_slots(
    sides_TH2rc: Tensor, index_TH2c: Tensor, cores_Hhrr: Tensor, m: int, addresses: Addresses
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, rows, blocks and int32 places; arguments as in ``slots.best_slots``, fp32.

    Raises:
        ArgumentError: Another type, or a row of the grid that a program cannot hold.
    """
    tokens, heads, _, components, candidates = sides_TH2rc.shape
    sides_TH2rc, cores_Hhrr = sides_TH2rc.contiguous(), cores_Hhrr.contiguous()
    epilogue = Epilogue(
        picked=sides_TH2rc.new_empty((tokens, heads, m), dtype=torch.int32),
        blocks=sides_TH2rc.new_empty((tokens, heads, m), dtype=torch.uint8),
        scores=sides_TH2rc.new_empty((cores_Hhrr.shape[1], tokens, heads, m)),
        index=index_TH2c.contiguous(),
        cores=cores_Hhrr,
        addresses=addresses,
    )
    rows_THrc, columns_THrc = sides_TH2rc.unbind(2)
    places_THm, emitted = _choose(rows_THrc, columns_THrc, cores_Hhrr.sum(dim=1), m, epilogue)
    if not emitted and places_THm.numel():
        emit_kernel[(tokens * heads,)](
            epilogue.picked,
            epilogue.blocks,
            epilogue.scores,
            places_THm,
            sides_TH2rc,
            epilogue.index,
            cores_Hhrr,
            epilogue.offsets,
            addresses.side,
            addresses.num_rows,
            heads,
            m,
            CANDIDATES=candidates,
            COMPONENTS=components,
            **epilogue.constants(m),
            num_warps=BACKWARD_WARPS,
        )
    return epilogue.scores, epilogue.picked, epilogue.blocks, places_THm


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What ``emit`` writes, and what it reads beside the sides."""

    picked: Tensor
    blocks: Tensor
    scores: Tensor
    index: Tensor
    cores: Tensor
    addresses: Addresses

    @property
    def offsets(self) -> Tensor:
        """Any tensor will do where none is read."""
        return self.index if self.addresses.offsets_RS is None else self.addresses.offsets_RS.contiguous()

    def constants(self, m: int) -> dict[str, int | bool]:
        offsets = self.addresses.offsets_RS
        return {
            "CORES": self.cores.shape[1],
            "ROUNDS": 0 if offsets is None else offsets.shape[0],
            "ONE_BLOCK": self.addresses.one_block,
            "PICKS": triton.next_power_of_2(m),
        }


NO_EPILOGUE = {"CORES": 0, "ROUNDS": 0, "ONE_BLOCK": False, "PICKS": 1}


def _choose(
    rows_THrc: Tensor, columns_THrc: Tensor, core_Hrr: Tensor, m: int, epilogue: Epilogue | None
) -> tuple[Tensor, bool]:
    """Places int32 [T, H, m], and whether the epilogue is done. Rows lie as columns do, each [r, c] is contiguous."""
    tokens, heads, components, candidates = rows_THrc.shape
    if candidates > SLAB_PLACES or rows_THrc.dtype is not torch.float32:
        raise ArgumentError(
            f"scores are {rows_THrc.dtype} of {candidates} candidates; expected torch.float32 of up to {SLAB_PLACES}"
        )
    slab = slab_of(candidates)
    slabs, kept = triton.cdiv(candidates**2, slab), min(m, slab)
    tile, programs = triton.next_power_of_2(slab), tokens * heads
    found = rows_THrc.new_zeros((programs, slabs, kept), dtype=torch.int32)
    # a last slab with fewer places than are kept leaves these, which lose
    values = rows_THrc.new_full((programs, slabs, kept) if slabs > 1 else (0,), -torch.inf)
    emits = epilogue if slabs == 1 else None
    if programs:
        grid_kernel[(programs, slabs)](
            found,
            values,
            rows_THrc,
            columns_THrc,
            core_Hrr,
            rows_THrc.stride(1),
            heads,
            kept,
            *_pointers(emits, found),
            CANDIDATES=candidates,
            COMPONENTS=components,
            SLAB=slab,
            TILE=tile,
            GROUPS=triton.next_power_of_2(kept),
            WITH_VALUES=slabs > 1,
            EMIT=emits is not None,
            **(NO_EPILOGUE if emits is None else emits.constants(m)),
            num_warps=grid_warps(tile),
        )
    if slabs > 1:
        # slabs and the places in them ascend, so that a tie goes to the smaller place here too
        best = best_candidates(values.view(1, 1, programs, -1), values.new_ones(1, 1), m)
        found = found.view(programs, -1).gather(1, best.squeeze(0))
    return found.view(tokens, heads, m), emits is not None


def _pointers(epilogue: Epilogue | None, unused: Tensor) -> tuple[Tensor | int, ...]:
    if epilogue is None:
        return (unused,) * 6 + (1, 1)
    e = epilogue
    return e.picked, e.blocks, e.scores, e.index, e.cores, e.offsets, e.addresses.side, e.addresses.num_rows


def best_slots_backward(
    grad_hTHm: Tensor, sides_TH2rc: Tensor, cores_Hhrr: Tensor, places_THm: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of sides and cores; arguments as in ``slots.py``. Each is a sum in a fixed order."""
    tokens, heads, _, components, candidates = sides_TH2rc.shape
    cores, m, programs = cores_Hhrr.shape[1], places_THm.shape[2], tokens * heads
    sides_TH2rc, cores_Hhrr = sides_TH2rc.contiguous(), cores_Hhrr.contiguous()
    sides_grad = torch.empty_like(sides_TH2rc)
    partial = sides_TH2rc.new_empty((tokens, heads, cores, components, components))
    if programs:
        shape = {"CANDIDATES": candidates, "COMPONENTS": components, "CORES": cores}
        tile = min(CANDIDATES_AT_A_TIME, triton.next_power_of_2(candidates))
        sides_grad_kernel[(programs, triton.cdiv(candidates, tile))](
            sides_grad,
            grad_hTHm,
            places_THm,
            sides_TH2rc,
            cores_Hhrr,
            heads,
            m,
            **shape,
            TILE_M=PICKS_AT_A_TIME,
            TILE_C=tile,
            num_warps=BACKWARD_WARPS,
        )
        cores_grad_kernel[(programs,)](
            partial,
            grad_hTHm,
            places_THm,
            sides_TH2rc,
            m,
            **shape,
            PICKS=triton.next_power_of_2(m),
            num_warps=BACKWARD_WARPS,
        )
    return sides_grad, partial.sum(dim=0)

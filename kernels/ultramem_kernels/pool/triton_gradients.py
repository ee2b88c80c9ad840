"""The gradients of ``pool`` on CUDA devices, and ``add_rows``: sums by row, in the order of a plan (``index_plan``).

Row numbers become int64 before any product: row * width passes 2**31 for 4 M rows of 512. Numbers are widened to fp32
as soon as they are loaded, and summed in it. There are no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem_kernels.index_plan import IndexPlan, make_plan, sort_picks

# Letters: N rows of the table, V value dimension, h score cores; A picks, G groups of them; C, M as in ``IndexPlan``.

PICKS_OF_A_STEP = 4
"""Of a tile, which holds a whole slice of a core."""
RUN_TILE, RUN_WARPS = 256, 2
"""Of the second pass: four fp32 numbers a thread."""


@triton.jit
def chunk_kernel(
    table_grad_ptr,  # [N, V], added to
    partial_ptr,  # fp32 [slots, V], written for runs of several chunks
    scores_grad_ptr,  # [h, A], written
    table_ptr,  # [N, V]
    grad_ptr,  # [G, V]
    sorted_rows_ptr,  # int32 [A]
    order_ptr,  # int32 [A]
    group_ptr,  # int64 [A]
    scores_ptr,  # [h, A]
    chunk_starts_ptr,  # int32 [C + 1]
    slots_ptr,  # int32 [C]
    picks,
    value_dim,
    WIDTH: tl.constexpr,
    TILE_V: tl.constexpr,  # a power of two, at least WIDTH
    TILE_K: tl.constexpr,
    WITH_TABLE: tl.constexpr,
    WITH_SCORES: tl.constexpr,
    PLAIN: tl.constexpr,  # each pick is a group of its own, and weighs 1
):
    """One program: one chunk of a row's picks, one core's slice. The row is read once."""
    chunk = tl.program_id(0)
    core = tl.program_id(1).to(tl.int64)
    begin = tl.load(chunk_starts_ptr + chunk)
    if begin < picks:
        end = tl.load(chunk_starts_ptr + chunk + 1)
        row = tl.load(sorted_rows_ptr + begin).to(tl.int64)
        offset = tl.arange(0, TILE_V)
        in_slice = offset < WIDTH
        column = core * WIDTH + offset
        sums = tl.zeros((TILE_V,), dtype=tl.float32)
        value = tl.zeros((TILE_V,), dtype=tl.float32)
        if WITH_SCORES:
            value += tl.load(table_ptr + row * value_dim + column, mask=in_slice, other=0.0).to(tl.float32)
        for start in range(begin, end, TILE_K):
            place = start + tl.arange(0, TILE_K)
            is_pick = place < end
            pick = tl.load(order_ptr + place, mask=is_pick, other=0).to(tl.int64)
            group = pick if PLAIN else tl.load(group_ptr + pick, mask=is_pick, other=0)
            grad = tl.load(
                grad_ptr + group[:, None] * value_dim + column[None, :],
                mask=is_pick[:, None] & in_slice[None, :],
                other=0.0,
            ).to(tl.float32)
            if WITH_TABLE and PLAIN:
                sums += tl.sum(grad, axis=0)
            elif WITH_TABLE:
                score = tl.load(scores_ptr + core * picks + pick, mask=is_pick, other=0.0).to(tl.float32)
                sums += tl.sum(grad * score[:, None], axis=0)
            if WITH_SCORES:
                product = tl.sum(grad * value[None, :], axis=1)
                product = product.to(scores_grad_ptr.dtype.element_ty)
                tl.store(scores_grad_ptr + core * picks + pick, product, mask=is_pick)
        if WITH_TABLE:
            slot = tl.load(slots_ptr + chunk).to(tl.int64)
            if slot < 0:
                target = table_grad_ptr + row * value_dim + column
                before = tl.load(target, mask=in_slice, other=0.0).to(tl.float32)
                tl.store(target, (before + sums).to(table_grad_ptr.dtype.element_ty), mask=in_slice)
            else:
                tl.store(partial_ptr + slot * value_dim + column, sums, mask=in_slice)


@triton.jit
def run_kernel(
    table_grad_ptr,  # [N, V], added to
    partial_ptr,  # fp32 [slots, V]
    run_rows_ptr,  # int32 [M]
    run_slots_ptr,  # int32 [M + 1]
    value_dim,
    TILE_V: tl.constexpr,
):
    """One program: the partial sums of one row, one after the other, in a tile of columns."""
    run = tl.program_id(0)
    row = tl.load(run_rows_ptr + run).to(tl.int64)
    if row >= 0:
        column = tl.program_id(1) * TILE_V + tl.arange(0, TILE_V)
        in_row = column < value_dim
        sums = tl.zeros((TILE_V,), dtype=tl.float32)
        begin = tl.load(run_slots_ptr + run).to(tl.int64)
        end = tl.load(run_slots_ptr + run + 1).to(tl.int64)
        for slot in range(begin, end):
            sums += tl.load(partial_ptr + slot * value_dim + column, mask=in_row, other=0.0)
        target = table_grad_ptr + row * value_dim + column
        before = tl.load(target, mask=in_row, other=0.0).to(tl.float32)
        tl.store(target, (before + sums).to(table_grad_ptr.dtype.element_ty), mask=in_row)


def backward_tile(width: int) -> tuple[int, int]:
    """Columns of a backward tile, which holds a core's slice, and its warps."""
    tile = max(16, triton.next_power_of_2(width))
    return tile, min(8, max(1, tile // 256))


def backward(
    grad_GV: Tensor,
    table_NV: Tensor,
    rows_A: Tensor,
    group_A: Tensor,
    scores_hA: Tensor,
    table_grad_NV: Tensor | None,
    scores_grad_hA: Tensor | None,
    plan: IndexPlan | None = None,
) -> None:
    """As ``torch_path.backward``; ``plan`` is that of ``rows_A``, made here if not given."""
    if rows_A.shape[0] == 0 or (table_grad_NV is None and scores_grad_hA is None):
        return
    plan = plan or make_plan(sort_picks(rows_A), table_NV.shape[0])
    partial = _partial_sums(plan, table_NV.shape[1], table_NV.device)
    # a kernel never touches what it is told not to write; it must be given something
    _sum_chunks(
        plan,
        scores_hA.shape[0],
        partial if table_grad_NV is None else table_grad_NV,
        partial,
        partial if scores_grad_hA is None else scores_grad_hA,
        table_NV,
        grad_GV.contiguous(),
        group_A.contiguous(),
        scores_hA.contiguous(),
        with_table=table_grad_NV is not None,
        with_scores=scores_grad_hA is not None,
        plain=False,
    )
    if table_grad_NV is not None:
        _sum_runs(plan, partial, table_grad_NV)


def add_rows(target_NV: Tensor, rows_A: Tensor, given_AV: Tensor, plan: IndexPlan | None = None) -> None:
    """As ``op.add_rows``; ``plan`` is that of ``rows_A``, made here if not given."""
    if rows_A.shape[0] == 0:
        return
    plan = plan or make_plan(sort_picks(rows_A), target_NV.shape[0])
    partial = _partial_sums(plan, target_NV.shape[1], target_NV.device)
    given_AV = given_AV.contiguous()
    _sum_chunks(
        plan,
        1,
        target_NV,
        partial,
        partial,
        target_NV,
        given_AV,
        plan.order_A,
        partial,
        with_table=True,
        with_scores=False,
        plain=True,
    )
    _sum_runs(plan, partial, target_NV)


def _partial_sums(plan: IndexPlan, value_dim: int, device: torch.device) -> Tensor:
    return torch.empty((plan.num_slots, value_dim), dtype=torch.float32, device=device)


def _sum_chunks(
    plan: IndexPlan,
    cores: int,
    table_grad_NV: Tensor,
    partial: Tensor,
    scores_grad_hA: Tensor,
    table_NV: Tensor,
    grad_GV: Tensor,
    group_A: Tensor,
    scores_hA: Tensor,
    *,
    with_table: bool,
    with_scores: bool,
    plain: bool,
) -> None:
    """Launch ``chunk_kernel``: rows of one chunk are done with it, the others leave partial sums."""
    value_dim = grad_GV.shape[1]
    width = value_dim // cores
    tile, warps = backward_tile(width)
    chunk_kernel[(plan.slots_C.shape[0], cores)](
        table_grad_NV,
        partial,
        scores_grad_hA,
        table_NV,
        grad_GV,
        plan.rows_A,
        plan.order_A,
        group_A,
        scores_hA,
        plan.chunk_starts,
        plan.slots_C,
        plan.rows_A.shape[0],
        value_dim,
        WIDTH=width,
        TILE_V=tile,
        TILE_K=PICKS_OF_A_STEP,
        WITH_TABLE=with_table,
        WITH_SCORES=with_scores,
        PLAIN=plain,
        num_warps=warps,
    )


def _sum_runs(plan: IndexPlan, partial: Tensor, table_grad_NV: Tensor) -> None:
    """Launch ``run_kernel``: the partial sums of the others, in order."""
    if plan.num_slots == 0:
        return
    value_dim = table_grad_NV.shape[1]
    run_kernel[(plan.run_rows_M.shape[0], triton.cdiv(value_dim, RUN_TILE))](
        table_grad_NV,
        partial,
        plan.run_rows_M,
        plan.run_slots,
        value_dim,
        TILE_V=RUN_TILE,
        num_warps=RUN_WARPS,
    )

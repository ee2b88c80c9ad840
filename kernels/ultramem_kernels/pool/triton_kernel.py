"""``pool`` and its gradients on CUDA devices.

Row numbers become int64 before any product: row * width passes 2**31 for 4 M rows of 512. Numbers are widened to fp32
as soon as they are loaded, and summed in it. No kernel here uses atomics: the gradient of a row is summed in the order
of a plan (``index_plan``).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem_kernels.index_plan import IndexPlan, make_plan, sort_picks

# Letters: N rows of the table, V value dimension, T tokens, K picks per token, E blocks, h score cores; A picks in all,
#          G groups of them.

MASKED_BLOCKS = 8
"""Up to so many blocks a token's picks are read once and sorted out by masks; beyond, picks are sorted by block."""
PICKS_AT_A_TIME = 16
"""Of a forward tile; independent loads hide the latency of memory."""
PICKS_OF_A_STEP = 4
"""Of a backward tile, which holds a whole slice of a core."""
RUN_TILE, RUN_WARPS = 256, 2
"""Of the second pass: four fp32 numbers a thread."""


@triton.jit
def pool_kernel(
    out_ptr,  # [T, E, V]
    table_ptr,  # [N, V]
    rows_ptr,  # [T, K]
    blocks_ptr,  # uint8 [T, K]
    scores_ptr,  # [h, T, K]
    tokens,
    picks,
    value_dim,
    WIDTH: tl.constexpr,  # V / h
    BLOCKS: tl.constexpr,
    BLOCKS_POWER: tl.constexpr,  # the next power of two
    TILE_K: tl.constexpr,
    TILE_V: tl.constexpr,
):
    """One program: one token, and a tile of columns within one core's slice."""
    token = tl.program_id(0).to(tl.int64)
    tiles: tl.constexpr = (WIDTH + TILE_V - 1) // TILE_V
    core = tl.program_id(1) // tiles
    offset = (tl.program_id(1) % tiles) * TILE_V + tl.arange(0, TILE_V)
    in_slice = offset < WIDTH
    column = core * WIDTH + offset
    block_ids = tl.arange(0, BLOCKS_POWER)
    sums = tl.zeros((BLOCKS_POWER, TILE_V), dtype=tl.float32)
    for start in range(0, picks, TILE_K):
        pick = start + tl.arange(0, TILE_K)
        is_pick = pick < picks
        row = tl.load(rows_ptr + token * picks + pick, mask=is_pick, other=0).to(tl.int64)
        score = tl.load(scores_ptr + (core * tokens + token) * picks + pick, mask=is_pick, other=0.0).to(tl.float32)
        value = tl.load(
            table_ptr + row[:, None] * value_dim + column[None, :],
            mask=is_pick[:, None] & in_slice[None, :],
            other=0.0,
        ).to(tl.float32)
        weighed = value * score[:, None]
        if BLOCKS == 1:
            sums += tl.sum(weighed, axis=0)[None, :]
        else:
            block = tl.load(blocks_ptr + token * picks + pick, mask=is_pick, other=0).to(tl.int32)
            for e in tl.static_range(BLOCKS):
                part = tl.sum(tl.where((block == e)[:, None], weighed, 0.0), axis=0)
                sums += tl.where((block_ids == e)[:, None], part[None, :], 0.0)
    out = out_ptr + (token * BLOCKS + block_ids[:, None]) * value_dim + column[None, :]
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=in_slice[None, :] & (block_ids < BLOCKS)[:, None])


@triton.jit
def pool_groups_kernel(
    out_ptr,  # [G, V]
    table_ptr,  # [N, V]
    rows_ptr,  # [A]
    starts_ptr,  # [G + 1]
    scores_ptr,  # [h, A]
    picks,
    value_dim,
    WIDTH: tl.constexpr,
    TILE_K: tl.constexpr,
    TILE_V: tl.constexpr,
):
    """One program: one group of consecutive picks, and a tile of columns within one core's slice."""
    group = tl.program_id(0).to(tl.int64)
    tiles: tl.constexpr = (WIDTH + TILE_V - 1) // TILE_V
    core = (tl.program_id(1) // tiles).to(tl.int64)
    offset = (tl.program_id(1) % tiles) * TILE_V + tl.arange(0, TILE_V)
    in_slice = offset < WIDTH
    column = core * WIDTH + offset
    begin = tl.load(starts_ptr + group)
    end = tl.load(starts_ptr + group + 1)
    sums = tl.zeros((TILE_V,), dtype=tl.float32)
    for start in range(begin, end, TILE_K):
        pick = start + tl.arange(0, TILE_K)
        is_pick = pick < end
        row = tl.load(rows_ptr + pick, mask=is_pick, other=0).to(tl.int64)
        score = tl.load(scores_ptr + core * picks + pick, mask=is_pick, other=0.0).to(tl.float32)
        value = tl.load(
            table_ptr + row[:, None] * value_dim + column[None, :],
            mask=is_pick[:, None] & in_slice[None, :],
            other=0.0,
        ).to(tl.float32)
        sums += tl.sum(value * score[:, None], axis=0)
    tl.store(out_ptr + group * value_dim + column, sums.to(out_ptr.dtype.element_ty), mask=in_slice)


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


def forward_tile(width: int) -> tuple[int, int]:
    """Columns of a forward tile, and its warps: little of a tile lies beyond a slice of 64, 96, 128, 192, 256, ..."""
    tile = 128 if width % 128 == 0 else 64
    return tile, tile // 64


def backward_tile(width: int) -> tuple[int, int]:
    """Columns of a backward tile, which holds a core's slice, and its warps."""
    tile = max(16, triton.next_power_of_2(width))
    return tile, min(8, max(1, tile // 256))


def pool(table_NV: Tensor, rows_TK: Tensor, blocks_TK: Tensor, scores_hTK: Tensor, num_blocks: int) -> Tensor:
    """``pool_TEV``; arguments as in ``op.pool``."""
    (tokens, picks), cores, value_dim = rows_TK.shape, scores_hTK.shape[0], table_NV.shape[1]
    if num_blocks > MASKED_BLOCKS:
        token_T1 = torch.arange(tokens, device=rows_TK.device).unsqueeze(1)
        group_A, order_A = (token_T1 * num_blocks + blocks_TK).view(-1).sort(stable=True)
        scores_hA = scores_hTK.flatten(1).index_select(1, order_A)
        sums = pool_groups(table_NV, rows_TK.reshape(-1)[order_A], group_A, scores_hA, tokens * num_blocks)
        return sums.view(tokens, num_blocks, value_dim)
    pooled_TEV = table_NV.new_empty(tokens, num_blocks, value_dim)
    width = value_dim // cores
    tile, warps = forward_tile(width)
    if tokens:
        pool_kernel[(tokens, cores * triton.cdiv(width, tile))](
            pooled_TEV,
            table_NV,
            rows_TK.contiguous(),
            blocks_TK.contiguous(),
            scores_hTK.contiguous(),
            tokens,
            picks,
            value_dim,
            WIDTH=width,
            BLOCKS=num_blocks,
            BLOCKS_POWER=triton.next_power_of_2(num_blocks),
            TILE_K=PICKS_AT_A_TIME,
            TILE_V=tile,
            num_warps=warps,
        )
    return pooled_TEV


def pool_groups(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, scores_hA: Tensor, groups: int) -> Tensor:
    """``sums_GV``; arguments as in ``op.pool_groups``."""
    cores, value_dim = scores_hA.shape[0], table_NV.shape[1]
    sums_GV = table_NV.new_empty(groups, value_dim)
    starts = torch.searchsorted(group_A, torch.arange(groups + 1, device=group_A.device))
    width = value_dim // cores
    tile, warps = forward_tile(width)
    if groups:
        pool_groups_kernel[(groups, cores * triton.cdiv(width, tile))](
            sums_GV,
            table_NV,
            rows_A.contiguous(),
            starts,
            scores_hA.contiguous(),
            rows_A.shape[0],
            value_dim,
            WIDTH=width,
            TILE_K=PICKS_AT_A_TIME,
            TILE_V=tile,
            num_warps=warps,
        )
    return sums_GV


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

"""``pool`` and ``pool_groups`` on CUDA devices; their gradients are in ``triton_gradients.py``.

A program is one warp, which reads rows 512 bytes at a time: a wide slice of one row, or narrow ones of several. Each
thread adds to sums of its own, one for each block, and only the last step adds up threads. So a pick costs little more
than its loads and one multiplication a block: a kernel whose threads add up more often is slower than the memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Letters: N rows of the table, V value dimension, T tokens, K picks per token, E blocks, h score cores; A picks in all,
#          G groups of them.

MASKED_BLOCKS = 8
"""Up to so many blocks a token's picks are read once and sorted out by masks; beyond, picks are sorted by block."""
WARP_BYTES = 512
"""That a warp reads at a time: 128 bits a thread."""
LEAST_TILE, USUAL_TILE = 16, 64
PICKS_AHEAD, MOST_STEPS = 16, 8
"""Independent loads hide the latency of memory; more of them take registers, and so leave fewer warps."""


@triton.jit
def pool_kernel(
    out_ptr,  # [G, E, V]
    table_ptr,  # [N, V]
    rows_ptr,  # [A]
    blocks_ptr,  # uint8 [A], read if there are several
    scores_ptr,  # [h, A]
    starts_ptr,  # int64 [G + 1], read if groups are not EVEN
    picks,  # A
    of_group,  # picks of a group if they are
    value_dim,
    WIDTH: tl.constexpr,  # V / h
    BLOCKS: tl.constexpr,
    EVEN: tl.constexpr,
    TILE_V: tl.constexpr,
    TILE_K: tl.constexpr,
    STEPS: tl.constexpr,
):
    """One program: one group of consecutive picks, and a tile of columns within one core's slice."""
    group = tl.program_id(0).to(tl.int64)
    if EVEN:
        begin = group * of_group
        count = of_group
    else:
        begin = tl.load(starts_ptr + group)
        count = (tl.load(starts_ptr + group + 1) - begin).to(tl.int32)
    tiles: tl.constexpr = (WIDTH + TILE_V - 1) // TILE_V
    core = tl.program_id(1) // tiles
    offset = (tl.program_id(1) % tiles) * TILE_V + tl.arange(0, TILE_V)
    in_slice = offset < WIDTH
    column = core * WIDTH + offset
    scores = scores_ptr + core.to(tl.int64) * picks
    sums = ()  # type: tuple
    for _ in tl.static_range(BLOCKS):
        sums += (tl.zeros((TILE_K, TILE_V), dtype=tl.float32),)
    for start in range(0, count, TILE_K * STEPS):
        for step in tl.static_range(STEPS):
            of_start = start + step * TILE_K + tl.arange(0, TILE_K)
            is_pick = of_start < count
            pick = begin + of_start
            row = tl.load(rows_ptr + pick, mask=is_pick, other=0).to(tl.int64)
            score = tl.load(scores + pick, mask=is_pick, other=0.0).to(tl.float32)
            value = tl.load(
                table_ptr + row[:, None] * value_dim + column[None, :],
                mask=is_pick[:, None] & in_slice[None, :],
                other=0.0,
            ).to(tl.float32)
            if BLOCKS == 1:
                sums = (sums[0] + value * score[:, None],)
            else:
                block = tl.load(blocks_ptr + pick, mask=is_pick, other=0).to(tl.int32)
                added = ()  # type: tuple
                for e in tl.static_range(BLOCKS):
                    # a weight of zero, not a sum left as it is: one multiplication that adds, not a sum and a choice
                    added += (sums[e] + value * tl.where(block == e, score, 0.0)[:, None],)
                sums = added
    out = out_ptr + group * BLOCKS * value_dim + column
    for e in tl.static_range(BLOCKS):
        tl.store(out + e * value_dim, tl.sum(sums[e], axis=0).to(out_ptr.dtype.element_ty), mask=in_slice)


def forward_tile(width: int, element_bytes: int) -> dict[str, int]:
    """Columns of a tile, its rows, and how many of them are read ahead; little of a tile lies beyond a slice.

    Args:
        width: Columns of a core's slice.
        element_bytes: Of the table.
    """
    widest = WARP_BYTES // element_bytes
    if width < USUAL_TILE:
        tile = max(LEAST_TILE, triton.next_power_of_2(width))
    else:
        tile = max(USUAL_TILE, min(widest, width & -width))
    rows = widest // tile
    return {"TILE_V": tile, "TILE_K": rows, "STEPS": max(1, min(MOST_STEPS, PICKS_AHEAD // rows))}


def pool(table_NV: Tensor, rows_TK: Tensor, blocks_TK: Tensor, scores_hTK: Tensor, num_blocks: int) -> Tensor:
    """``pool_TEV``; arguments as in ``op.pool``."""
    (tokens, picks), value_dim = rows_TK.shape, table_NV.shape[1]
    if num_blocks > MASKED_BLOCKS:
        token_T1 = torch.arange(tokens, device=rows_TK.device).unsqueeze(1)
        group_A, order_A = (token_T1 * num_blocks + blocks_TK).view(-1).sort(stable=True)
        scores_hA = scores_hTK.flatten(1).index_select(1, order_A)
        sums_GV = pool_groups(table_NV, rows_TK.reshape(-1)[order_A], group_A, scores_hA, tokens * num_blocks)
        return sums_GV.view(tokens, num_blocks, value_dim)
    return _launch(table_NV, rows_TK, blocks_TK, scores_hTK.flatten(1), tokens, num_blocks, starts=None, of_group=picks)


def pool_groups(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, scores_hA: Tensor, groups: int) -> Tensor:
    """``sums_GV``; arguments as in ``op.pool_groups``."""
    starts = torch.searchsorted(group_A, torch.arange(groups + 1, device=group_A.device))
    return _launch(table_NV, rows_A, rows_A, scores_hA, groups, 1, starts=starts, of_group=0).squeeze(1)


def _launch(
    table_NV: Tensor,
    rows: Tensor,
    blocks: Tensor,
    scores_hA: Tensor,
    groups: int,
    num_blocks: int,
    *,
    starts: Tensor | None,
    of_group: int,
) -> Tensor:
    """[G, E, V]; ``starts`` or, of even groups, their picks."""
    cores, value_dim = scores_hA.shape[0], table_NV.shape[1]
    width = value_dim // cores
    out_GEV = table_NV.new_empty(groups, num_blocks, value_dim)
    tile = forward_tile(width, table_NV.element_size())
    if groups:
        pool_kernel[(groups, cores * triton.cdiv(width, tile["TILE_V"]))](
            out_GEV,
            table_NV,
            rows.contiguous(),
            blocks.contiguous(),
            scores_hA.contiguous(),
            out_GEV if starts is None else starts,
            rows.numel(),
            of_group,
            value_dim,
            WIDTH=width,
            BLOCKS=num_blocks,
            EVEN=starts is None,
            **tile,
            num_warps=1,
        )
    return out_GEV

"""The inner products on CUDA devices.

Row numbers become int64 before any product: row * width passes 2**31 for 4 M rows of 512. Numbers are widened to fp32
as soon as they are loaded, and summed in it. A group's vector is read again for each tile of its picks, from the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Letters: N rows of the table, V its columns; T tokens, K picks per token; A picks, G groups of them.

PICKS_AT_A_TIME = 16
"""Of a tile; independent loads hide the latency of memory."""


@triton.jit
def products_kernel(
    out_ptr,  # fp32 [A]
    table_ptr,  # [N, V]
    rows_ptr,  # [A]
    starts_ptr,  # int64 [G + 1]
    vectors_ptr,  # [G, V]
    value_dim,
    TILE_K: tl.constexpr,
    TILE_V: tl.constexpr,
):
    """One program: one group of consecutive picks, tile by tile."""
    group = tl.program_id(0).to(tl.int64)
    begin = tl.load(starts_ptr + group)
    end = tl.load(starts_ptr + group + 1)
    for start in range(begin, end, TILE_K):
        pick = start + tl.arange(0, TILE_K)
        is_pick = pick < end
        row = tl.load(rows_ptr + pick, mask=is_pick, other=0).to(tl.int64)
        sums = tl.zeros((TILE_K, TILE_V), dtype=tl.float32)
        for left in range(0, value_dim, TILE_V):
            column = left + tl.arange(0, TILE_V)
            in_row = column < value_dim
            vector = tl.load(vectors_ptr + group * value_dim + column, mask=in_row, other=0.0).to(tl.float32)
            value = tl.load(
                table_ptr + row[:, None] * value_dim + column[None, :],
                mask=is_pick[:, None] & in_row[None, :],
                other=0.0,
            ).to(tl.float32)
            sums += value * vector[None, :]
        tl.store(out_ptr + pick, tl.sum(sums, axis=1), mask=is_pick)


def product_tile(value_dim: int) -> tuple[int, int]:
    """Columns of a tile, and its warps: as those of ``pool``."""
    tile = 128 if value_dim % 128 == 0 else 64
    return tile, tile // 64


def multiply_rows(table_NV: Tensor, rows_TK: Tensor, vectors_TV: Tensor) -> Tensor:
    """``products_TK``; arguments as in ``op.multiply_rows``."""
    tokens, picks = rows_TK.shape
    starts = torch.arange(tokens + 1, device=rows_TK.device) * picks
    return _multiply(table_NV, rows_TK.reshape(-1), starts, vectors_TV).view(tokens, picks)


def multiply_groups(table_NV: Tensor, rows_A: Tensor, group_A: Tensor, vectors_GV: Tensor) -> Tensor:
    """``products_A``; arguments as in ``op.multiply_groups``."""
    starts = torch.searchsorted(group_A, torch.arange(vectors_GV.shape[0] + 1, device=group_A.device))
    return _multiply(table_NV, rows_A, starts, vectors_GV)


def _multiply(table_NV: Tensor, rows_A: Tensor, starts: Tensor, vectors_GV: Tensor) -> Tensor:
    products_A = torch.empty(rows_A.shape, dtype=torch.float32, device=table_NV.device)
    tile, warps = product_tile(table_NV.shape[1])
    if vectors_GV.shape[0]:
        products_kernel[(vectors_GV.shape[0],)](
            products_A,
            table_NV,
            rows_A.contiguous(),
            starts,
            vectors_GV.contiguous(),
            table_NV.shape[1],
            TILE_K=PICKS_AT_A_TIME,
            TILE_V=tile,
            num_warps=warps,
        )
    return products_A

"""What follows the choice of stage 2 on CUDA devices: rows, blocks and scores of the picks, and the gradient."""

import triton
import triton.language as tl

# Letters: T tokens, H heads, 2 sides, r components of a score, c candidates of a side, m kept, h cores, S keys of a
#          side, R rounds.

PICKS_AT_A_TIME = 16
CANDIDATES_AT_A_TIME = 128
BACKWARD_WARPS = 4


@triton.jit
def emit(
    picked_ptr,  # int32 [T * H, m], rows of the table
    blocks_ptr,  # uint8 [T * H, m]
    scores_ptr,  # fp32 [h, T * H, m]
    places_ptr,  # int32 [T * H, m], places of the grid
    sides_ptr,  # fp32 [T * H, 2, r, c]
    index_ptr,  # int64 [T * H, 2, c]
    cores_ptr,  # fp32 [H, h, r, r]
    offsets_ptr,  # int32 [R, S]
    side,
    num_rows,
    heads,
    program,
    programs,
    m,
    CANDIDATES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    CORES: tl.constexpr,
    ROUNDS: tl.constexpr,  # of the shuffle; 0: a slot is its address
    ONE_BLOCK: tl.constexpr,
    PICKS: tl.constexpr,  # a power of two, at least m
):
    """The picks of one token and head, one a lane."""
    pick = tl.arange(0, PICKS)
    is_pick = pick < m
    target = program * m + pick
    place = tl.load(places_ptr + target, mask=is_pick, other=0)
    row = place // CANDIDATES
    column = place % CANDIDATES
    index = index_ptr + program * 2 * CANDIDATES
    left = tl.load(index + row, mask=is_pick, other=0).to(tl.int32)
    right = tl.load(index + CANDIDATES + column, mask=is_pick, other=0).to(tl.int32)
    for turn in tl.static_range(ROUNDS):
        moved = (left + tl.load(offsets_ptr + turn * side + right, mask=is_pick, other=0)) % side
        left = right
        right = moved
    address = left.to(tl.int64) * side + right
    block = address // num_rows
    tl.store(picked_ptr + target, (address - block * num_rows).to(tl.int32), mask=is_pick)
    if ONE_BLOCK:
        block = tl.zeros_like(block)
    tl.store(blocks_ptr + target, block.to(tl.uint8), mask=is_pick)
    rows = sides_ptr + program * 2 * COMPONENTS * CANDIDATES + row
    columns = sides_ptr + (program * 2 + 1) * COMPONENTS * CANDIDATES + column
    for core in tl.static_range(CORES):
        matrix = cores_ptr + ((program % heads) * CORES + core) * COMPONENTS * COMPONENTS
        score = tl.zeros((PICKS,), dtype=tl.float32)
        for b in tl.static_range(COMPONENTS):
            weight = tl.zeros((PICKS,), dtype=tl.float32)
            for a in tl.static_range(COMPONENTS):
                of_row = tl.load(rows + a * CANDIDATES, mask=is_pick, other=0.0)
                weight += tl.load(matrix + a * COMPONENTS + b) * of_row
            score += weight * tl.load(columns + b * CANDIDATES, mask=is_pick, other=0.0)
        tl.store(scores_ptr + core * programs * m + target, score, mask=is_pick)


@triton.jit
def emit_kernel(
    picked_ptr,
    blocks_ptr,
    scores_ptr,
    places_ptr,
    sides_ptr,
    index_ptr,
    cores_ptr,
    offsets_ptr,
    side,
    num_rows,
    heads,
    m,
    CANDIDATES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    CORES: tl.constexpr,
    ROUNDS: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PICKS: tl.constexpr,
):
    """``emit`` by itself, where the choice took several programs. One program: one token and head."""
    # fmt: off
    emit(picked_ptr, blocks_ptr, scores_ptr, places_ptr, sides_ptr, index_ptr, cores_ptr, offsets_ptr, side, num_rows,
         heads, tl.program_id(0).to(tl.int64), tl.num_programs(0), m,
         CANDIDATES, COMPONENTS, CORES, ROUNDS, ONE_BLOCK, PICKS)
    # fmt: on


@triton.jit
def sides_grad_kernel(
    sides_grad_ptr,  # fp32 [T * H, 2, r, c]
    grad_ptr,  # fp32 [h, T * H, m], of the scores
    places_ptr,  # int32 [T * H, m]
    sides_ptr,  # fp32 [T * H, 2, r, c]
    cores_ptr,  # fp32 [H, h, r, r]
    heads,
    m,
    CANDIDATES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    CORES: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """One program: ``TILE_C`` candidates of each side of one token and head. Each sums its picks in their order."""
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    candidate = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    rows = sides_ptr + program * 2 * COMPONENTS * CANDIDATES
    columns = rows + COMPONENTS * CANDIDATES
    for a in tl.static_range(COMPONENTS):
        rows_grad = tl.zeros((TILE_C,), dtype=tl.float32)
        columns_grad = tl.zeros((TILE_C,), dtype=tl.float32)
        for start in range(0, m, TILE_M):
            pick = start + tl.arange(0, TILE_M)
            is_pick = pick < m
            place = tl.load(places_ptr + program * m + pick, mask=is_pick, other=0)
            row = place // CANDIDATES
            column = place % CANDIDATES
            to_row = tl.zeros((TILE_M,), dtype=tl.float32)
            to_column = tl.zeros((TILE_M,), dtype=tl.float32)
            for core in tl.static_range(CORES):
                matrix = cores_ptr + ((program % heads) * CORES + core) * COMPONENTS * COMPONENTS
                grad = tl.load(grad_ptr + (core * programs + program) * m + pick, mask=is_pick, other=0.0)
                for b in tl.static_range(COMPONENTS):
                    of_column = tl.load(columns + b * CANDIDATES + column, mask=is_pick, other=0.0)
                    of_row = tl.load(rows + b * CANDIDATES + row, mask=is_pick, other=0.0)
                    to_row += grad * tl.load(matrix + a * COMPONENTS + b) * of_column
                    to_column += grad * tl.load(matrix + b * COMPONENTS + a) * of_row
            # what is no pick has no gradient
            rows_grad += tl.sum(tl.where(row[:, None] == candidate[None, :], to_row[:, None], 0.0), axis=0)
            columns_grad += tl.sum(tl.where(column[:, None] == candidate[None, :], to_column[:, None], 0.0), axis=0)
        target = sides_grad_ptr + (program * 2 * COMPONENTS + a) * CANDIDATES + candidate
        tl.store(target, rows_grad, mask=candidate < CANDIDATES)
        tl.store(target + COMPONENTS * CANDIDATES, columns_grad, mask=candidate < CANDIDATES)


@triton.jit
def cores_grad_kernel(
    partial_ptr,  # fp32 [T * H, h, r, r]
    grad_ptr,  # fp32 [h, T * H, m], of the scores
    places_ptr,  # int32 [T * H, m]
    sides_ptr,  # fp32 [T * H, 2, r, c]
    m,
    CANDIDATES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    CORES: tl.constexpr,
    PICKS: tl.constexpr,  # a power of two, at least m
):
    """One program: what one token and head add to the gradient of the head's cores."""
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    pick = tl.arange(0, PICKS)
    is_pick = pick < m
    place = tl.load(places_ptr + program * m + pick, mask=is_pick, other=0)
    rows = sides_ptr + program * 2 * COMPONENTS * CANDIDATES + place // CANDIDATES
    columns = sides_ptr + (program * 2 + 1) * COMPONENTS * CANDIDATES + place % CANDIDATES
    for core in tl.static_range(CORES):
        grad = tl.load(grad_ptr + (core * programs + program) * m + pick, mask=is_pick, other=0.0)
        for a in tl.static_range(COMPONENTS):
            weighed = grad * tl.load(rows + a * CANDIDATES, mask=is_pick, other=0.0)
            for b in tl.static_range(COMPONENTS):
                total = tl.sum(weighed * tl.load(columns + b * CANDIDATES, mask=is_pick, other=0.0), axis=0)
                place_of = ((program * CORES + core) * COMPONENTS + a) * COMPONENTS + b
                tl.store(partial_ptr + place_of, total)

"""The m largest of a row of numbers without sorting: a threshold, found bit by bit, then a prefix sum that compacts.

Exact for any m; ties go to the smaller place, and places come out in ascending order: the same bits each time. The idea
of searching for the value and not sorting is RTop-K's (arXiv 2409.00822).
"""

import triton
import triton.language as tl


@triton.jit
def ordered(x):
    """int32 keys in the order of fp32 numbers."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def select(key, is_number, m):
    """Which of the numbers are among the m largest, and the place of each such in the result.

    ``threshold`` grows to the largest key that at least m numbers reach: from the least int32 upwards, the highest bit
    first. Adding 2**31 to the least int32 wraps round to 0, as wanted.
    """
    key = tl.where(is_number, key, -2147483648)
    threshold = tl.full((), -2147483648, tl.int32)
    for step in range(32):
        higher = threshold + (tl.full((), 1, tl.int32) << (31 - step))
        reached = tl.sum((key >= higher).to(tl.int32), axis=0)
        threshold = tl.where(reached >= m, higher, threshold)
    above = key > threshold
    level = is_number & (key == threshold)
    lacking = m - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | (level & (tl.cumsum(level.to(tl.int32), axis=0) <= lacking))
    return chosen, tl.cumsum(chosen.to(tl.int32), axis=0) - 1

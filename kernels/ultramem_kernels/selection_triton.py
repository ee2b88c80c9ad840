"""The m largest of a row of numbers without sorting: a threshold, found by halving, then a prefix sum that compacts.

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
def select(key, is_number, m, GROUPS: tl.constexpr):
    """Which of the numbers are among the m largest, and the place of each such in the result.

    The threshold, the largest key that at least m reach, is sought between two bounds. ``GROUPS`` is a power of two, m
    or more: the best of so many groups are m keys at least, so that the least of these is no larger than the threshold.
    Of normally distributed numbers, and of their products, six to nine halvings are left on average (simulated), and of
    any numbers 32 at most: none follows on a threshold that m keys reach and no more.
    """
    key = tl.where(is_number, key, -2147483648)
    # strided: all groups have numbers, though the last places of a tile have none
    best = tl.max(tl.reshape(key, (key.shape[0] // GROUPS, GROUPS)), axis=0)
    low, high = tl.min(best, axis=0), tl.max(best, axis=0)
    reached = tl.sum((key >= low).to(tl.int32), axis=0)
    while (low < high) & (reached != m):
        middle = (low | high) - ((low ^ high) >> 1)  # rounded up; low + high would overflow
        count = tl.sum((key >= middle).to(tl.int32), axis=0)
        enough = count >= m
        reached = tl.where(enough, count, reached)
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    above = is_number & (key > low)
    level = is_number & (key == low)
    # both prefix sums at once, 16 bits each
    counts = tl.cumsum((above.to(tl.int32) << 16) | level.to(tl.int32), axis=0)
    of_level = counts & 0xFFFF
    lacking = m - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | (level & (of_level <= lacking))
    return chosen, (counts >> 16) + tl.minimum(of_level, lacking) - 1

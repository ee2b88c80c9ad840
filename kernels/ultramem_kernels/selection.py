"""The m largest of many numbers, on a CPU: exactly, ties included, at the speed of NumPy's vectorised partition."""

import torch
from torch import Tensor

# Letters: R rows, n numbers of a row, m kept, p rows of a part.

PART_ELEMENTS = 2**18
"""Keys that are there at a time: 2 MiB stay in the cache."""
PLACE_BITS = 32


def top_m_reference(x_Rn: Tensor, m: int) -> Tensor:
    """int64 [R, m], places of the m largest numbers of each row, from the largest down; ties to the smaller place."""
    return x_Rn.sort(dim=1, descending=True, stable=True).indices[:, :m]


def top_m(x_Rn: Tensor, m: int) -> Tensor:
    """The same places.

    A number and its place become one integer key, the number's bits above and the place below, so that no two are
    equal and nothing but integers need be parted: NumPy does so with the processor's widest vectors, several times as
    fast on one core as ``torch.topk``, which moves pairs.

    Args:
        x_Rn: fp32; of another type (gradient checks) the reference takes care. What is not a number counts by its
            bits, as on GPUs: above all numbers, or below them if its sign is set.
        m: 1 to n.
    """
    if x_Rn.dtype is not torch.float32:
        return top_m_reference(x_Rn, m)
    rows, n = x_Rn.shape
    size = max(1, PART_ELEMENTS // n)
    keys = _Keys(min(size, rows), n, m)
    places_Rm = torch.empty(rows, m, dtype=torch.int64)
    for part in (slice(start, start + size) for start in range(0, rows, size)):
        x_pn = x_Rn[part].contiguous()
        # the bits of positive numbers are in their order and above those of all others: mostly that is enough
        best_pm = keys.largest(x_pn.view(torch.int32))
        if (best_pm[:, 0] < 2**PLACE_BITS).any():
            best_pm = keys.largest(_ordered_bits(x_pn))
        torch.sub(n - 1, best_pm.bitwise_and_(2**PLACE_BITS - 1).flip(1), out=places_Rm[part])
    return places_Rm


class _Keys:
    """Makes keys in the same memory each time: fresh pages would cost more than the choice."""

    def __init__(self, most: int, n: int, m: int) -> None:
        self.memory_pn = torch.empty(most, n, dtype=torch.int64)
        self.below_n = torch.arange(n - 1, -1, -1)  # the larger, the smaller the place
        self.first = n - m

    def largest(self, bits_pn: Tensor) -> Tensor:
        """int64 [p, m], in ascending order; gone with the next call."""
        keys_pn = self.memory_pn[: bits_pn.shape[0]].copy_(bits_pn)
        keys_pn.bitwise_left_shift_(PLACE_BITS).bitwise_or_(self.below_n)
        keys_pn.numpy().partition(self.first, axis=1)
        best_pm = keys_pn[:, self.first :]
        best_pm.numpy().sort(axis=1)
        return best_pm


def _ordered_bits(x: Tensor) -> Tensor:
    """int32 that are ordered as the fp32 numbers: of negative ones the bits but the sign are turned over."""
    bits = (x + 0.0).view(torch.int32)  # -0 becomes 0, which it equals
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(2**31 - 1))

"""IVE: a seeded bijection from virtual slots to (physical row, block) (paper section 2.4, eq. 13-15).

A fixed random address for each virtual slot breaks the prior that copies of one row sit at related keys. A stored
permutation would take 4 bytes for each of E * N slots; four rounds of an additive Feistel network on the S x S grid of
slots take 4 * S numbers, and every rank computes the same.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ultramem_kernels.grid_top_m import Addresses

ROUNDS = 4


class SlotShuffle(nn.Module):
    """slot -> (row, block), with ``row = a % N``, ``block = a // N`` and ``a`` the shuffled address."""

    offsets: Tensor

    def __init__(self, side: int, num_rows: int, seed: int) -> None:
        super().__init__()
        draws = np.random.Generator(np.random.Philox(key=seed)).integers(0, side, (ROUNDS, side), dtype=np.int32)
        # not in the checkpoint: a function of the config
        self.register_buffer("offsets", torch.from_numpy(draws), persistent=False)
        self.side, self.num_rows = side, num_rows

    def of_grid(self, side: int) -> Addresses:
        """For the operation that picks slots; ``side`` is that of the retrieval's grid."""
        assert side == self.side
        return Addresses(side, self.num_rows, self.offsets)

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """int64 slots in [0, side * side) -> int32 rows in [0, N), uint8 blocks in [0, E), same shape."""
        return self.of_grid(self.side).locate(slots)


class OneBlock(nn.Module):
    """The same rows, all in one block: what UltraMemV2 keeps of the expansion (arXiv 2508.18756, eq. 12)."""

    def __init__(self, shuffle: SlotShuffle) -> None:
        super().__init__()
        self.shuffle = shuffle

    def of_grid(self, side: int) -> Addresses:
        """As of ``SlotShuffle``."""
        return replace(self.shuffle.of_grid(side), one_block=True)

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """int64 slots -> int32 rows, uint8 zeros, same shape."""
        return self.of_grid(self.shuffle.side).locate(slots)


class PlainSlots(nn.Module):
    """slot = row, one block: product keys without expansion."""

    def of_grid(self, side: int) -> Addresses:
        """As of ``SlotShuffle``."""
        return Addresses(side, side * side)

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """int64 slots -> int32 rows, uint8 zeros, same shape."""
        return slots.int(), torch.zeros_like(slots, dtype=torch.uint8)

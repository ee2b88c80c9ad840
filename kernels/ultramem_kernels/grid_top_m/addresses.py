"""From the slots of a grid to the rows of a table: a seeded bijection, or none (UltraMem paper, eq. 13-15)."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Letters: S keys of a side, R rounds.


@dataclass(frozen=True, slots=True, eq=False)
class Addresses:
    """slot -> (row, block), with ``row = a % num_rows``, ``block = a // num_rows`` and ``a`` the slot's address.

    An additive Feistel network on the S x S grid of slots takes S numbers a round, and is undone by subtracting; a
    stored permutation would take S * S.
    """

    side: int
    """S."""
    num_rows: int
    offsets_RS: Tensor | None = None
    """int32; without, a slot is its own address."""
    one_block: bool = False
    """Let all blocks be the first."""

    def locate(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """int64 slots in [0, S * S) -> int32 rows, uint8 blocks, same shape."""
        address = slots if self.offsets_RS is None else self._shuffle(slots, self.offsets_RS)
        row = (address % self.num_rows).int()
        if self.one_block:
            return row, torch.zeros_like(slots, dtype=torch.uint8)
        return row, (address // self.num_rows).to(torch.uint8)

    def _shuffle(self, slots: Tensor, offsets_RS: Tensor) -> Tensor:
        left, right = slots // self.side, slots % self.side
        for offsets_S in offsets_RS:
            # each round is undone by subtracting, so the whole is a bijection of the grid
            left, right = right, (left + offsets_S[right]) % self.side
        return left * self.side + right

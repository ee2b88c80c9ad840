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
        return self.locate_keys(slots // self.side, slots % self.side)

    def locate_keys(self, row_keys: Tensor, column_keys: Tensor) -> tuple[Tensor, Tensor]:
        """int64 row and column keys of slots, ``row * S + column`` -> as ``locate``."""
        # int32 where it will do: half of the memory, and a CPU is ten times as fast
        kind = torch.int32 if self.side**2 <= 2**31 else torch.int64
        left, right = row_keys.to(kind), column_keys.to(kind)
        if self.offsets_RS is not None:
            left, right = self._shuffle(left, right, self.offsets_RS)
        address = torch.add(right, left, alpha=self.side)
        first = torch.zeros_like(address, dtype=torch.uint8)
        if self.num_rows == self.side**2:
            return address.int(), first
        block = address // self.num_rows
        row = torch.sub(address, block, alpha=self.num_rows).int()
        return row, first if self.one_block else block.to(torch.uint8)

    def _shuffle(self, left: Tensor, right: Tensor, offsets_RS: Tensor) -> tuple[Tensor, Tensor]:
        for offsets_S in offsets_RS:
            moved = left + offsets_S.index_select(0, right.reshape(-1)).view(right.shape)
            moved.sub_((moved >= self.side).to(moved.dtype), alpha=self.side)
            # each round is undone by subtracting, so the whole is a bijection of the grid
            left, right = right, moved
        return left, right

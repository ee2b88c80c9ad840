"""PEER-style pre-values: the weight of a slot is its score times <P[row], W x> (arXiv 2508.18756, eq. 15).

With the value table behind it, a slot is a small expert of one hidden unit, without an activation.
"""

import dataclasses

import torch
from torch import Tensor, nn

from ultramem_kernels.product import linear
from ultramem_megatron.memory.value_table import ValueTable
from ultramem_megatron.parallel.partition.base import Picks
from ultramem_megatron.parallel.underway import finish

# Letters: T tokens, D hidden width, K picks, h cores, Dp width of a pre-value.


class PreValues(nn.Module):
    """A second table [N, Dp], split as the values are, and the projection [Dp, D] of what it is multiplied with."""

    def __init__(self, hidden: int, table: ValueTable, dtype: torch.dtype) -> None:
        super().__init__()
        width = table.partition.table.value_dim
        self.weight = nn.Parameter(torch.empty(width, hidden, dtype=dtype))
        self.table = table

    async def weigh(self, x_TD: Tensor, picks: Picks) -> Picks:
        """The same picks, their scores multiplied. Collective as a lookup."""
        products_TK = await self.table.multiply(picks.rows_TK, linear(x_TD, self.weight))
        return dataclasses.replace(picks, scores_hTK=(picks.scores_hTK * products_TK).to(picks.scores_hTK.dtype))

    def forward(self, x_TD: Tensor, picks: Picks) -> Picks:
        """``weigh``, with nothing in between."""
        return finish(self.weigh(x_TD, picks))

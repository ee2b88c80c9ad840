"""Each tensor-parallel rank looks up its own share of the tokens, with or without sequence parallelism."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor

# Letters: s tokens of a sequence on this rank, b sequences, D hidden width.


@dataclass(frozen=True, slots=True)
class TokenShare:
    """Splits a sequence over the tensor-parallel group and puts it together again.

    Under Megatron's sequence parallelism the input is this rank's share already. Without it all ranks hold the
    same tokens; looking them up on each would send and count every gradient several times.
    """

    tp: dist.ProcessGroup
    sequence_parallel: bool

    def enter(self, x_sbD: Tensor) -> Tensor:
        """This rank's tokens."""
        if self.sequence_parallel or self.tp.size() == 1:
            return x_sbD
        return scatter_to_sequence_parallel_region(x_sbD, group=self.tp)

    def leave(self, x_sbD: Tensor) -> Tensor:
        """The tokens that the block expects."""
        if self.sequence_parallel or self.tp.size() == 1:
            return x_sbD
        return gather_from_sequence_parallel_region(x_sbD, tensor_parallel_output_grad=False, group=self.tp)

    def tokens_before(self, x_sbD: Tensor, count: int) -> Tensor:
        """The ``count`` tokens that precede this rank's share of each sequence; zeros before its start.

        Returns:
            [count, b, D]; gradients go back to the rank that holds those tokens.
        """
        if self.tp.size() == 1 or count == 0:  # x[-0:] would be all of x
            return x_sbD.new_zeros((count, *x_sbD.shape[1:]))
        tails = gather_from_sequence_parallel_region(x_sbD[-count:].contiguous(), group=self.tp)
        rank = self.tp.rank()
        if rank == 0:
            return tails[:count] * 0  # nothing precedes, but the backward of the gather needs every rank
        return torch.narrow(tails, 0, (rank - 1) * count, count)

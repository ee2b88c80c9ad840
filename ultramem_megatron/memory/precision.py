"""The type that scores and sums are computed in."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """``x`` in fp32, so that rankings and sums do not round to bf16; fp64 stays, for gradient checks."""
    return x if x.dtype is torch.float64 else x.float()

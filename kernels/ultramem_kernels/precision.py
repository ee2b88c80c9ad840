"""The type that scores and sums are computed in."""

import torch
from torch import Tensor


def wide_type(x: Tensor) -> torch.dtype:
    """fp32, so that rankings and sums do not round to bf16; fp64 stays, for gradient checks."""
    return torch.promote_types(x.dtype, torch.float32)


def widened(x: Tensor) -> Tensor:
    """``x`` in the type to compute in."""
    return x.to(wide_type(x))

"""RMSNorm over the last dimension, computed in fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultramem_kernels.precision import widened

QUERY_KEY_EPSILON = 1e-6  # the published code takes the model's; 1e-6 keeps the norm of small keys honest


class QueryKeyNorm(nn.Module):
    """Norm of queries or keys along one Tucker rank's part of the key dimension (paper Table 2, "q/k LN").

    The published code uses the model's RMSNorm here, one weight for row and column alike.
    """

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> fp32 of the same shape (fp64 if x is)."""
        return F.rms_norm(widened(x), x.shape[-1:], widened(self.weight), QUERY_KEY_EPSILON)

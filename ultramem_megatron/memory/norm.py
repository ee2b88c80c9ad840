"""RMSNorm over the last dimension, computed in fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultramem_kernels.precision import widened

# Letters: N vectors, w their width.

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
        if x.is_cuda:
            return norm_reference(widened(x), widened(self.weight))
        return _FewPasses.apply(widened(x), widened(self.weight))


def norm_reference(x: Tensor, weight_w: Tensor) -> Tensor:
    """[..., w], each vector divided by the root of its mean square, times ``weight``."""
    return F.rms_norm(x, x.shape[-1:], weight_w, QUERY_KEY_EPSILON)


class _FewPasses(torch.autograd.Function):
    """``norm_reference`` with its gradient written out: on a CPU half of the passes over memory, and of the time."""

    @staticmethod
    def forward(ctx, x: Tensor, weight_w: Tensor) -> Tensor:
        x_Nw = x.reshape(-1, x.shape[-1])
        mean_square_N1 = torch.linalg.vector_norm(x_Nw, dim=1, keepdim=True).square_().div_(x_Nw.shape[1])
        scale_N1 = mean_square_N1.add_(QUERY_KEY_EPSILON).rsqrt_()
        normal_Nw = x_Nw * scale_N1
        ctx.save_for_backward(normal_Nw, scale_N1, weight_w)
        return (normal_Nw * weight_w).view(x.shape)

    @staticmethod
    def backward(ctx, grad: Tensor):
        normal_Nw, scale_N1, weight_w = ctx.saved_tensors
        grad_Nw = grad.reshape(normal_Nw.shape)
        products_Nw = grad_Nw * normal_Nw
        weight_grad_w = products_Nw.sum(dim=0)
        along_N1 = (products_Nw @ weight_w).div_(-normal_Nw.shape[1]).unsqueeze(1)
        x_grad_Nw = (grad_Nw * weight_w).addcmul_(normal_Nw, along_N1).mul_(scale_N1)
        return x_grad_Nw.view(grad.shape), weight_grad_w

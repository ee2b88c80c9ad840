"""The tables' own Adam on a GPU: the same numbers as on the CPU, and no memory of the size of the table."""

import pytest
import torch
from torch import Tensor, nn

from ultramem_megatron.optim.table_adamw import TableAdamW

pytestmark = pytest.mark.gpu

ROWS, WIDTH = 20_000, 96
BF16, FP32 = torch.bfloat16, torch.float32


def run(device: torch.device, weights: Tensor, gradients: list[Tensor], *, lazy: bool, moments: torch.dtype) -> Tensor:
    """Weights after all steps; on a GPU the last of them allocates nothing."""
    parameter = nn.Parameter(weights.to(device))
    plain = torch.optim.AdamW([parameter], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    model = {parameter: parameter.detach().bfloat16()}
    optimizer = TableAdamW(plain, model, lazy=lazy, moment_types=(moments, moments), step_in_group=False)
    for gradient in gradients:
        parameter.grad = gradient.to(device)
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        if before:
            torch.cuda.reset_peak_memory_stats()
        optimizer.step()
    if before:
        assert torch.cuda.max_memory_allocated() == before
    assert torch.equal(model[parameter], parameter.detach().bfloat16())
    return parameter.detach().cpu()


@pytest.mark.parametrize("moments", [FP32, BF16], ids=str)
@pytest.mark.parametrize("lazy", [True, False])
def test_weights_are_those_of_the_cpu(device: torch.device, lazy: bool, moments: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = torch.randn(ROWS * WIDTH)
    gradients = [(torch.randn(ROWS, WIDTH) * (torch.rand(ROWS, 1) < 0.3)).flatten() for _ in range(4)]
    there, here = (run(d, weights, gradients, lazy=lazy, moments=moments) for d in (device, torch.device("cpu")))
    # a moment that lies between two bf16 numbers may be rounded to either
    tolerance = 1e-6 if moments is FP32 else 1e-3
    torch.testing.assert_close(there, here, rtol=tolerance, atol=tolerance)

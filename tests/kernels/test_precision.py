"""The type that scores and sums are computed in."""

import pytest
import torch

from ultramem_kernels.precision import widened


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_narrow_types_become_fp32_and_fp64_stays(given: torch.dtype, found: torch.dtype) -> None:
    x = torch.tensor([1.0 + 2**-7, -3.0], dtype=given)
    assert widened(x).dtype is found
    assert widened(x).tolist() == x.tolist()

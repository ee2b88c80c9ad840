"""RMSNorm for megatron-core's local specs."""

from dataclasses import dataclass
from types import ModuleType

import pytest
import torch


@dataclass(frozen=True)
class Settings:
    """The fields of megatron-core's config that the norm reads."""

    params_dtype: torch.dtype
    sequence_parallel: bool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_norm_equals_its_definition(megatron: ModuleType, dtype: torch.dtype, sequence_parallel: bool) -> None:
    from ultramem_megatron.model.norm import RMSNorm

    norm = RMSNorm(Settings(dtype, sequence_parallel), 6, eps=0.5)  # type: ignore[arg-type]
    assert norm.weight.eq(1).all() and norm.weight.dtype is dtype
    assert norm.weight.sequence_parallel is sequence_parallel  # type: ignore[attr-defined]
    with torch.no_grad():
        norm.weight.copy_(torch.arange(6.0))
    x = torch.randn(4, 2, 6).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 0.5).sqrt() * torch.arange(6.0).double()
    found = norm(x)
    assert found.dtype is dtype
    torch.testing.assert_close(found, expected.to(dtype), atol=1e-6, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5)

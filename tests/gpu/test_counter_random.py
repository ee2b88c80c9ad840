"""Initial weights do not depend on the device."""

import pytest
import torch

from ultramem_megatron.model.counter_random import normal_at, uniform_at
from ultramem_megatron.model.stream_key import stream_key

pytestmark = pytest.mark.gpu

KEY = stream_key(1234, "memory.layers.0.table.weight")
STARTS = [0, 2**33, 2**62]


@pytest.mark.parametrize("start", STARTS)
def test_uniform_is_the_same_to_the_bit(device: torch.device, start: int) -> None:
    index = torch.arange(start, start + 100_000)
    assert torch.equal(uniform_at(KEY, index.to(device)).cpu(), uniform_at(KEY, index))


@pytest.mark.parametrize("start", STARTS)
def test_normal_is_the_same_to_rounding(device: torch.device, start: int) -> None:
    index = torch.arange(start, start + 100_000)
    torch.testing.assert_close(normal_at(KEY, index.to(device)).cpu(), normal_at(KEY, index), rtol=1e-6, atol=1e-6)

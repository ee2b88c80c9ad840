"""A process on a GPU: nccl, and a torch that nobody has changed."""

import pytest
import torch
import torch.distributed as dist

pytestmark = pytest.mark.gpu


def test_ranks_meet_over_nccl(device: torch.device) -> None:
    assert device.type == "cuda"
    assert dist.get_backend() == "nccl"
    total = torch.ones(3, device=device)
    dist.all_reduce(total)
    assert total.tolist() == [1, 1, 1]


def test_the_cpu_seam_is_not_installed(device: torch.device) -> None:
    assert torch.cuda.Stream.__module__ == "torch.cuda.streams"
    assert torch.zeros(1).cuda().device.type == "cuda"

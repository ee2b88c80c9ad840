"""Health of memory layers, on tensors small enough to check by hand."""

import math

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.monitor.memory_health import (
    SlotUsage,
    mean_score,
    output_std,
    owner_skew,
    singular_value_ratio,
    top1_score,
)
from ultramem_megatron.testing.distributed import run_distributed


def check_usage_of_a_group() -> None:
    usage = SlotUsage(8)
    usage.update(torch.tensor([0, 1, 2]) + dist.get_rank())
    assert usage.fraction(dist.group.WORLD) == 4 / 8  # {0, 1, 2} and {1, 2, 3}
    assert usage.fraction() == 3 / 8  # asking the group leaves the own reads alone


def test_a_row_read_by_any_rank_of_a_group_counts() -> None:
    run_distributed(2, check_usage_of_a_group)


def check_skew_of_a_group() -> None:
    assert owner_skew([6, 1, 2][dist.get_rank()], dist.group.WORLD) == 2.0  # 6 over the mean of 3
    assert owner_skew(0, dist.group.WORLD).isnan()


def test_skew_is_the_busiest_owner_over_the_mean() -> None:
    run_distributed(3, check_skew_of_a_group)


def test_slot_usage_grows_until_reset() -> None:
    usage = SlotUsage(4)
    assert usage.fraction() == 0.0
    usage.update(torch.tensor([0, 1, 1]))
    usage.update(torch.empty(0, 3, dtype=torch.int32))
    usage.update(torch.tensor([[1], [3]]))
    assert usage.fraction() == 0.75
    usage.reset()
    assert usage.fraction() == 0.0


def test_slot_usage_of_a_table_larger_than_a_byte_counts() -> None:
    usage = SlotUsage(1000)
    usage.update(torch.arange(1000))
    assert usage.fraction() == 1.0


def test_scores() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [5.0, -1.0, 2.0]], requires_grad=True)
    assert top1_score(scores) == 4.0
    assert mean_score(scores) == 2.0
    assert not top1_score(scores).requires_grad and not mean_score(scores).requires_grad


def test_scores_of_several_cores_average() -> None:
    assert top1_score(torch.tensor([[[1.0, 2.0]], [[6.0, 4.0]]], dtype=torch.bfloat16)) == 4.0


def test_output_std() -> None:
    assert output_std(torch.tensor([[1.0, -1.0], [3.0, -3.0]])).item() == pytest.approx(math.sqrt(5))


def test_singular_value_ratio() -> None:
    assert singular_value_ratio(torch.diag(torch.tensor([1.0, 4.0]))).item() == pytest.approx(0.25)
    cores = torch.stack([torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([8.0, 8.0]))])
    assert singular_value_ratio(cores).item() == pytest.approx(0.75)
    assert singular_value_ratio(torch.tensor([[3.0]])) == 0.0

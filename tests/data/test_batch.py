"""Batches: the same samples a step in every layout, and a resumed run goes on as if nothing had been."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from ultramem_megatron.data.batch import Batch, BatchSampler
from ultramem_megatron.data.token_source import TokenSource


class Numbers(TokenSource):
    """Sample i is filled with i."""

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"tokens": torch.full((6,), i), "labels": torch.full((6,), i)}

    @property
    def fingerprint(self) -> str:
        return "numbers"


def steps_of(dp_size: int, micro_batch_size: int, count: int, consumed: int = 0) -> list[list[list[Batch]]]:
    """Steps, of ranks, of micro-batches."""
    samplers = [
        BatchSampler(
            Numbers(),
            global_batch_size=12,
            micro_batch_size=micro_batch_size,
            dp_rank=rank,
            dp_size=dp_size,
            consumed_samples=consumed,
        )
        for rank in range(dp_size)
    ]
    return [list(step) for step in zip(*(islice(sampler, count) for sampler in samplers), strict=True)]


@pytest.mark.parametrize(("dp_size", "micro_batch_size"), [(1, 12), (1, 1), (2, 3), (3, 2), (4, 3), (12, 1)])
def test_a_step_has_the_same_samples_in_every_layout(dp_size: int, micro_batch_size: int) -> None:
    for number, step in enumerate(steps_of(dp_size, micro_batch_size, 3)):
        assert all(len(batches) == 12 // dp_size // micro_batch_size for batches in step)
        seen = [sample for batches in step for batch in batches for sample in batch["tokens"][:, 0].tolist()]
        assert sorted(seen) == list(range(12 * number, 12 * number + 12))


def test_a_micro_batch_is_contiguous_and_has_what_gpt_needs() -> None:
    batch = steps_of(2, 3, 2)[1][1][1]  # step 1, rank 1, micro-batch 1
    assert batch["tokens"][:, 0].tolist() == [21, 22, 23]
    assert batch["tokens"].shape == batch["labels"].shape == (3, 6)
    assert torch.equal(batch["position_ids"], torch.arange(6).repeat(3, 1))
    assert sorted(batch) == ["labels", "position_ids", "tokens"]  # every label counts: no mask


def test_resume_equals_going_on() -> None:
    whole = steps_of(2, 3, 5)
    resumed = steps_of(2, 3, 3, consumed=24)
    for expected, found in zip(whole[2:], resumed, strict=True):
        for rank in range(2):
            for one, other in zip(expected[rank], found[rank], strict=True):
                assert all(torch.equal(one[key], other[key]) for key in one)


def test_consumed_samples_counts_the_steps_that_were_yielded() -> None:
    sampler = BatchSampler(Numbers(), global_batch_size=4, micro_batch_size=2, consumed_samples=8)
    steps = iter(sampler)
    next(steps)
    assert sampler.consumed_samples == 12
    next(steps)
    assert sampler.consumed_samples == 16

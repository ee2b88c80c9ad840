"""Exchanges run beside other work, forward and backward, and an operation of several can be left where it waits."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.parallel.channel import Channel
from ultramem_megatron.parallel.collectives import begin_all_gather_tokens, begin_all_to_all
from ultramem_megatron.parallel.exchange import Together
from ultramem_megatron.parallel.partition.base import Picks, TableShape
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.parallel.timeline import Timeline
from ultramem_megatron.parallel.underway import Underway, finish
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.partition_runs import build

RANKS = 2


class Diary(Timeline):
    """Notes what happens, in order."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def start(self, name: str, *, backward: bool) -> str:
        self.entries.append(f"begin {name}{' back' * backward}")
        return f"{name}{' back' * backward}"

    def wait(self, mark: str, wait: Any) -> None:
        self.entries.append(f"wait {mark}")
        wait()


class Work(torch.autograd.Function):
    """Dense compute that leaves a line in the diary."""

    @staticmethod
    def forward(ctx, x: Tensor, diary: Diary, name: str) -> Tensor:
        ctx.diary, ctx.name = diary, name
        diary.entries.append(name)
        return x * 1.0

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.diary.entries.append(f"{ctx.name} back")
        return grad, None, None


def exchange_beside_work() -> tuple[list[str], Tensor, Tensor]:
    diary = Diary()
    channel = Channel(dist.group.WORLD, timeline=diary)  # type: ignore[arg-type]
    x = torch.full((RANKS, 1), 1.0 + channel.rank, requires_grad=True)
    exchange = begin_all_to_all(x, [1] * RANKS, [1] * RANKS, channel, "rows")
    hidden = Work.apply(Work.apply(x.detach().requires_grad_(), diary, "attention"), diary, "MLP")
    y = exchange.finish()
    (hidden + y * (10.0 + channel.rank)).sum().backward()
    assert x.grad is not None
    return diary.entries, y.detach(), x.grad


def test_the_reverse_travels_beside_the_same_work() -> None:
    for rank, (entries, y, grad) in enumerate(run_distributed(RANKS, exchange_beside_work)):
        assert entries[:4] == ["begin rows", "attention", "MLP", "wait rows"]
        assert entries[4:] == ["begin rows back", "MLP back", "attention back", "wait rows back"]
        assert y.flatten().tolist() == [1.0, 2.0]
        assert grad.flatten().tolist() == [10.0, 11.0], rank


def exchange_without_gradient() -> None:
    channel = Channel(dist.group.WORLD)  # type: ignore[arg-type]
    numbers = torch.full((1, 2), channel.rank, dtype=torch.int32)
    first, second = finish(both(numbers, numbers.float(), channel))
    assert not first.requires_grad and not second.requires_grad
    assert first.tolist() == [[0, 0], [1, 1]] and second.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    with torch.no_grad():
        learned = torch.zeros(1, 1, requires_grad=True)
        assert not finish(both(learned, learned, channel))[0].requires_grad


async def both(x: Tensor, y: Tensor, channel: Channel) -> Sequence[Tensor]:
    return await Together(
        begin_all_gather_tokens(x, [1] * RANKS, channel), begin_all_gather_tokens(y, [1] * RANKS, channel)
    )


def test_what_has_no_gradient_needs_no_reverse() -> None:
    run_distributed(RANKS, exchange_without_gradient)


def finish_twice() -> None:
    channel = Channel(dist.group.WORLD)  # type: ignore[arg-type]
    exchange = begin_all_to_all(torch.ones(1), [1], [1], channel)
    exchange.finish()
    exchange.finish()


def test_an_exchange_is_finished_once() -> None:
    with pytest.raises(AssertionError, match="twice"):
        run_distributed(1, finish_twice)


# --- Operations of several exchanges ----------------------------------------------------------------------------------


def count_waits(name: PartitionName) -> list[int]:
    """How often a lookup and inner products await something."""
    partition = build(name, TableShape(num_rows=8, value_dim=4))
    shard = torch.ones(partition.shard(dist.get_rank()).shape)
    rows = torch.tensor([[1, 7]], dtype=torch.int32)
    picks, tokens = Picks(rows, torch.zeros_like(rows, dtype=torch.uint8), torch.ones(1, 1, 2)), [1] * RANKS
    counts = []
    for operation in (
        partition.look_up(shard, picks, tokens),
        partition.multiply(shard, rows, torch.ones(1, 4), tokens),
    ):
        underway, waits = Underway(operation), 0
        while not underway.is_done:
            underway.advance()
            waits += 1
        counts.append(waits)
    return [*counts, partition.waits]


@pytest.mark.parametrize("name", [name for name in PARTITIONS if name is not PartitionName.REPLICATED])
def test_a_partition_says_how_often_it_waits(name: PartitionName) -> None:
    """The memory lane shares its waits out by this number."""
    for lookup, products, said in run_distributed(RANKS, count_waits, name):
        assert lookup == products == said > 0

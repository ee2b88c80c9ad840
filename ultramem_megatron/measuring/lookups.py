"""Whole lookups, forward and backward, by every strategy in turn."""

# Letters: T tokens of this rank, K picks per token, n and v this rank's rows and columns, h score cores.

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.measuring.clock import Clock, slowest, time_together
from ultramem_megatron.measuring.picks import draw_picks
from ultramem_megatron.parallel.channel import Channel
from ultramem_megatron.parallel.partition.base import Picks, TableShape, ValuePartition
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.planning.validation.results import BenchShape, Measurement, Seconds

DTYPES = {2: torch.bfloat16, 4: torch.float32}
PHASES = ("dispatch", "lookup", "combine")


def contenders_for(shape: BenchShape) -> list[PartitionName]:
    """The strategies that can split such a table over so many ranks; a replicated one has no group to share it."""
    if shape.ranks == 1:
        return [PartitionName.REPLICATED]
    return [name for name in PARTITIONS if name is not PartitionName.REPLICATED and _can_split(name, shape)]


def _can_split(name: PartitionName, shape: BenchShape) -> bool:
    return name is not PartitionName.DIMENSION_WISE or shape.value_dim % shape.ranks == 0


@dataclass
class Contender:
    """One strategy on one shape, with what it needs to run again and again."""

    partition: ValuePartition
    weight_nv: Tensor
    picks: Picks
    cotangent_TEV: Tensor
    tokens: list[int]
    seconds: list[list[float]] = field(default_factory=list)
    """For each repeat those of the phases."""

    def run(self, clock: Clock) -> list[float]:
        """Forward and backward once; seconds of the phases on this rank. Collective over the group."""
        held: list[object] = []
        rows, scores_hTK = self.picks.rows_TK, self.picks.scores_hTK.detach().requires_grad_()
        picks = Picks(rows, self.picks.blocks_TK, scores_hTK)

        def dispatch() -> None:
            held.append(self.partition.dispatch(picks, self.tokens))

        def lookup() -> None:
            held.append(self.partition.lookup(self.weight_nv, held[0]))

        def combine() -> None:
            held.append(self.partition.combine(held[1], held[0]))  # type: ignore[arg-type]

        def backward() -> None:
            pooled_TEV = held[2]
            assert isinstance(pooled_TEV, Tensor)
            pooled_TEV.backward(self.cotangent_TEV)

        return time_together([dispatch, lookup, combine, backward], clock, self.partition.channel.group)


def measure_shape(
    shape: BenchShape,
    names: Sequence[PartitionName],
    group: dist.ProcessGroup,
    device: torch.device,
    *,
    repeats: int,
    warmups: int,
) -> list[Measurement]:
    """Time each strategy on ``shape``. Collective over ``group``, of ``shape.ranks`` ranks.

    The strategies take turns, in an order that moves on by one each round, so that noise hits all alike.
    """
    contenders = [prepare(name, shape, group, device) for name in names]
    clock = Clock(device)
    for round_number in range(warmups + repeats):
        first = round_number % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            if round_number == warmups:
                contender.partition.channel.traffic.reset()
            seconds = contender.run(clock)
            if round_number >= warmups:
                contender.seconds.append(seconds)
    return [_measurement(name, shape, one, device, group) for name, one in zip(names, contenders, strict=True)]


def prepare(name: PartitionName, shape: BenchShape, group: dist.ProcessGroup, device: torch.device) -> Contender:
    """Shard, picks and cotangent of this rank; the same picks whatever the strategy."""
    table = TableShape(num_rows=shape.num_rows, value_dim=shape.value_dim, blocks=shape.expansion, cores=shape.cores)
    partition = PARTITIONS[name](table, Channel(group))
    dtype = DTYPES[shape.element_bytes]
    generator = torch.Generator().manual_seed(group.rank())
    weight_nv = torch.full(partition.shard(group.rank()).shape, 0.5, dtype=dtype, device=device).requires_grad_()
    # as in training: the gradient goes straight into Megatron's buffer
    weight_nv.main_grad = torch.zeros(weight_nv.shape, device=device)  # type: ignore[attr-defined]
    return Contender(
        partition,
        weight_nv,
        draw_picks(shape, dtype, device, generator),
        torch.ones(shape.tokens, shape.expansion, shape.value_dim, dtype=dtype, device=device),
        [shape.tokens] * shape.ranks,
    )


def _measurement(
    name: PartitionName, shape: BenchShape, done: Contender, device: torch.device, group: dist.ProcessGroup
) -> Measurement:
    passes = [[*own[:3], sum(own[:3]), own[3], sum(own)] for own in done.seconds]
    columns = slowest(passes, device, group).T
    *phases, forward, backward, total = [_over_repeats(column) for column in columns]
    traffic = done.partition.channel.traffic
    sent = torch.tensor([traffic.forward_bytes, traffic.backward_bytes], dtype=torch.float64, device=device)
    dist.all_reduce(sent, group=group)
    repeats = len(done.seconds)
    forward_bytes, backward_bytes = (sent / repeats / group.size()).tolist()
    return Measurement(
        partition=name,
        shape=shape,
        repeats=repeats,
        forward=forward,
        backward=backward,
        total=total,
        phases=dict(zip(PHASES, phases, strict=True)),
        forward_bytes=forward_bytes,
        backward_bytes=backward_bytes,
    )


def _over_repeats(column: Tensor) -> Seconds:
    low, median, high = torch.quantile(column, torch.tensor([0.25, 0.5, 0.75], dtype=column.dtype)).tolist()
    return Seconds(median=median, low=low, high=high)

"""Whole lookups, forward and backward, by every strategy in turn."""

# Letters: T tokens of this rank, K picks per token, n and v this rank's rows and columns, h score cores.

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.measuring.clock import Clock, slowest, time_together
from ultramem_megatron.measuring.collectives import own_subgroup
from ultramem_megatron.measuring.picks import draw_picks
from ultramem_megatron.parallel.channel import Channel, NodeGroups, Traffic
from ultramem_megatron.parallel.partition.base import Picks, TableShape, ValuePartition
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.parallel.underway import finish
from ultramem_megatron.planning.validation.results import BenchShape, Measurement, Seconds

DTYPES = {2: torch.bfloat16, 4: torch.float32}
PHASES = ("dispatch", "lookup", "combine")


def contenders_for(shape: BenchShape, node_size: int) -> list[PartitionName]:
    """The strategies that can split such a table over so many ranks; a replicated one has no group to share it."""
    if shape.ranks == 1:
        return [PartitionName.REPLICATED]
    return [name for name in PARTITIONS if _can_split(name, shape, node_size)]


def _can_split(name: PartitionName, shape: BenchShape, node_size: int) -> bool:
    match name:
        case PartitionName.REPLICATED:
            return False
        case PartitionName.DIMENSION_WISE:
            return shape.value_dim % shape.ranks == 0
        case PartitionName.GRID:
            return 1 < node_size < shape.ranks and shape.ranks % node_size == 0 and shape.value_dim % node_size == 0
        case _:
            return True


def open_channel(node_size: int) -> Channel:
    """To all ranks, and by nodes of ``node_size`` of them where that divides them. Collective over the world."""
    world = dist.group.WORLD
    assert world is not None
    if not 1 < node_size < world.size() or world.size() % node_size:
        return Channel(world)
    places = [list(range(place, world.size(), node_size)) for place in range(node_size)]
    across, _ = dist.new_subgroups_by_enumeration(places)
    assert across is not None
    return Channel(world, nodes=NodeGroups(own_subgroup(node_size), across))


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
            held.append(finish(self.partition.dispatch(picks, self.tokens)))

        def lookup() -> None:
            held.append(self.partition.lookup(self.weight_nv, held[0]))

        def combine() -> None:
            held.append(finish(self.partition.combine(held[1], held[0])))  # type: ignore[arg-type]

        def backward() -> None:
            pooled_TEV = held[2]
            assert isinstance(pooled_TEV, Tensor)
            pooled_TEV.backward(self.cotangent_TEV)

        return time_together([dispatch, lookup, combine, backward], clock, self.partition.channel.group)


def measure_shape(
    shape: BenchShape,
    names: Sequence[PartitionName],
    channel: Channel,
    device: torch.device,
    *,
    repeats: int,
    warmups: int,
) -> list[Measurement]:
    """Time each strategy on ``shape``. Collective over the ``shape.ranks`` ranks of ``channel``.

    The strategies take turns, in an order that moves on by one each round, so that noise hits all alike.
    """
    contenders = [prepare(name, shape, channel, device) for name in names]
    clock = Clock(device)
    for round_number in range(warmups + repeats):
        first = round_number % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            if round_number == warmups:
                contender.partition.channel.traffic.reset()
            seconds = contender.run(clock)
            if round_number >= warmups:
                contender.seconds.append(seconds)
    return [_measurement(name, shape, one, device) for name, one in zip(names, contenders, strict=True)]


def prepare(name: PartitionName, shape: BenchShape, channel: Channel, device: torch.device) -> Contender:
    """Shard, picks and cotangent of this rank; the same picks whatever the strategy. It gets a meter of its own."""
    table = TableShape(num_rows=shape.num_rows, value_dim=shape.value_dim, blocks=shape.expansion, cores=shape.cores)
    partition = PARTITIONS[name](table, replace(channel, traffic=Traffic()))
    dtype = DTYPES[shape.element_bytes]
    generator = torch.Generator().manual_seed(channel.rank)
    weight_nv = torch.full(partition.shard(channel.rank).shape, 0.5, dtype=dtype, device=device).requires_grad_()
    # as in training: the gradient goes straight into Megatron's buffer
    weight_nv.main_grad = torch.zeros(weight_nv.shape, device=device)  # type: ignore[attr-defined]
    return Contender(
        partition,
        weight_nv,
        draw_picks(shape, dtype, device, generator),
        torch.ones(shape.tokens, shape.expansion, shape.value_dim, dtype=dtype, device=device),
        [shape.tokens] * shape.ranks,
    )


def _measurement(name: PartitionName, shape: BenchShape, done: Contender, device: torch.device) -> Measurement:
    channel = done.partition.channel
    group, traffic = channel.group, channel.traffic
    passes = [[*own[:3], sum(own[:3]), own[3], sum(own)] for own in done.seconds]
    columns = slowest(passes, device, group).T
    *phases, forward, backward, total = [_over_repeats(column) for column in columns]
    sent = torch.tensor([traffic.forward_bytes, traffic.backward_bytes], dtype=torch.float64, device=device)
    dist.all_reduce(sent, group=group)
    repeats = len(done.seconds)
    forward_bytes, backward_bytes = (sent / repeats / group.size()).tolist()
    return Measurement(
        partition=name,
        node_size=channel.inside.size if name is PartitionName.GRID else None,
        shape=shape,
        repeats=repeats,
        forward=forward,
        backward=backward,
        total=total,
        halves=_halves(columns[-1]),
        phases=dict(zip(PHASES, phases, strict=True)),
        forward_bytes=forward_bytes,
        backward_bytes=backward_bytes,
    )


def _halves(column: Tensor) -> tuple[float, float] | None:
    if len(column) == 1:
        return None
    odd, even = (torch.quantile(half, 0.5).item() for half in (column[0::2], column[1::2]))
    return odd, even


def _over_repeats(column: Tensor) -> Seconds:
    low, median, high = torch.quantile(column, torch.tensor([0.25, 0.5, 0.75], dtype=column.dtype)).tolist()
    return Seconds(median=median, low=low, high=high)

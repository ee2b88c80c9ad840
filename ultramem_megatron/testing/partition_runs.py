"""A case on the forked ranks of a group, and the unsplit table beside it."""

# Letters: N rows of the table, V value dimension, n and v one rank's share of them, T tokens of a rank, G of all.

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.parallel.channel import Channel, NodeGroups, Traffic
from ultramem_megatron.parallel.partition.base import Shard, TableShape, ValuePartition
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.planning.rank_grid import RankLists, build_rank_grid
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.partition_cases import Case, usual_node_size
from ultramem_megatron.testing.tolerances import assert_agrees


@dataclass(frozen=True)
class Found:
    """What one rank computes."""

    output_T: Tensor
    table_grad_nv: Tensor
    input_grad_T: Tensor
    traffic: Traffic


def build(name: PartitionName, shape: TableShape, node_size: int | None = None) -> ValuePartition:
    """Split over all ranks. Collective."""
    return PARTITIONS[name](shape, world_channel(name, node_size))


def world_channel(name: PartitionName, node_size: int | None = None) -> Channel:
    """All ranks; for a grid, by node. Collective.

    Args:
        name: What will talk over it.
        node_size: Ranks of a node; ``usual_node_size`` if none.
    """
    world = dist.group.WORLD
    assert world is not None
    if name is not PartitionName.GRID:
        return Channel(world)
    return Channel(world, nodes=_nodes(world, usual_node_size(world.size()) if node_size is None else node_size))


@cache  # a rank is a fork with a world of its own; new groups for each case would take longer than the case
def _nodes(world: dist.ProcessGroup, node_size: int) -> NodeGroups:
    lists = build_rank_grid(
        world_size=world.size(), tensor=1, pipeline=1, memory_parallel_size=world.size(), node_size=node_size
    )
    return NodeGroups(_own_group(lists.mem_inside), _own_group(lists.mem_across))


def _own_group(lists: RankLists) -> dist.ProcessGroup:
    own, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in lists])
    assert own is not None
    return own


def compute(name: PartitionName, case: Case) -> Found:
    """On one of the ranks: forward and backward with this rank's shard and tokens."""
    rank = dist.get_rank()
    partition = build(name, case.shape, case.node_size)
    weight_nv = cut(case.table_NV, partition.shard(rank)).clone().requires_grad_()
    input_T = case.of_rank(case.input_G, rank).clone().requires_grad_()
    output_T = case.run(partition, weight_nv, input_T, rank)
    output_T.backward(case.of_rank(case.cotangent_G, rank))
    assert output_T.dtype == case.output_type
    assert weight_nv.grad is not None and input_T.grad is not None
    return Found(output_T.detach(), weight_nv.grad, input_T.grad, partition.channel.traffic)


def compute_all(name: PartitionName, cases: Sequence[Case]) -> list[Found]:
    return [compute(name, case) for case in cases]


def run_cases(name: PartitionName, ranks: int, cases: Sequence[Case]) -> list[tuple[Case, list[Found]]]:
    """All cases on the same forked ranks: each case with what the ranks found, in their order."""
    by_rank = run_distributed(ranks, compute_all, name, cases)
    return [(case, list(found)) for case, found in zip(cases, zip(*by_rank, strict=True), strict=True)]


def cut(table_NV: Tensor, shard: Shard) -> Tensor:
    return table_NV[shard.rows.start : shard.rows.stop, shard.columns.start : shard.columns.stop]


def assemble(
    name: PartitionName, shape: TableShape, ranks: int, pieces: Sequence[Tensor], node_size: int | None = None
) -> Tensor:
    """The whole table from the ranks' shards; a cell that no shard covers is NaN, one that two cover is refused."""
    whole_NV = torch.full((shape.num_rows, shape.value_dim), torch.nan, dtype=pieces[0].dtype)
    for shard, piece in zip(shards(name, shape, ranks, node_size), pieces, strict=True):
        assert cut(whole_NV, shard).isnan().all()
        cut(whole_NV, shard).copy_(piece)
    return whole_NV


class FakeGroup:
    """Enough of a process group to ask a partition for its shards."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks


def shards(name: PartitionName, shape: TableShape, ranks: int, node_size: int | None = None) -> list[Shard]:
    node_size = usual_node_size(ranks) if node_size is None else node_size
    whole, inside, across = FakeGroup(ranks), FakeGroup(node_size), FakeGroup(ranks // node_size)
    partition = PARTITIONS[name](shape, Channel(whole, nodes=NodeGroups(inside, across)))  # type: ignore[arg-type]
    return [partition.shard(rank) for rank in range(ranks)]


def unsplit(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """The oracle, in float64 on the whole table: output, gradients of table [N, V] and input."""
    table_NV = case.table_NV.double().requires_grad_()
    input_G = case.input_G.double().requires_grad_()
    output_G = case.definition(table_NV, input_G)
    if not sum(case.tokens):
        return output_G, torch.zeros_like(table_NV), torch.zeros_like(input_G)
    output_G.backward(case.cotangent_G.double())
    assert table_NV.grad is not None and input_G.grad is not None
    return output_G.detach(), table_NV.grad, input_G.grad


def assert_equals_unsplit(name: PartitionName, case: Case, found: Sequence[Found]) -> None:
    dtype = case.table_NV.dtype
    output_G, table_grad_NV, input_grad_G = unsplit(case)
    assert_agrees(torch.cat([f.output_T for f in found]), output_G, computed_in=case.output_type)
    table_grad = assemble(name, case.shape, len(found), [f.table_grad_nv for f in found], case.node_size)
    assert_agrees(table_grad, table_grad_NV, computed_in=dtype)
    assert_agrees(torch.cat([f.input_grad_T for f in found]), input_grad_G, computed_in=dtype)

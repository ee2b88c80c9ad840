"""The value table: what Megatron is told of its parameter, and its place in the logical table of a checkpoint."""

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.parallel.partition.base import TableShape
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.partition_runs import build

SHAPE = TableShape(num_rows=7, value_dim=6)


def describe(name: PartitionName) -> dict[str, Any]:
    from ultramem_megatron.memory.value_table import ValueTable

    alone, _ = dist.new_subgroups(1)
    assert alone is not None
    table = ValueTable(build(name, SHAPE), alone, torch.bfloat16, torch.device("cpu"))
    ((key, tensor),) = table.sharded_state_dict("memory.layers.0.table.").items()
    assert tensor.data is table.weight and tensor.key == key
    weight: Any = table.weight
    return {
        "key": key,
        "local": (*tensor.local_shape, *table.weight.shape),
        "global": tensor.global_shape,
        "offset": tensor.global_offset,
        "replica": tensor.replica_id,
        "dtype": tensor.dtype,
        "marks": (weight.allreduce, weight.tensor_model_parallel, hasattr(weight, "sequence_parallel")),
    }


@pytest.mark.parametrize(
    ("name", "ranks", "offsets", "sizes"),
    [
        (PartitionName.REPLICATED, 1, [(0, 0)], [(7, 6)]),
        (PartitionName.NUMBER_WISE, 3, [(0, 0), (2, 0), (4, 0)], [(2, 6), (2, 6), (3, 6)]),
        (PartitionName.DIMENSION_WISE, 3, [(0, 0), (0, 2), (0, 4)], [(7, 2)] * 3),
        (PartitionName.GRID, 4, [(0, 0), (0, 3), (3, 0), (3, 3)], [(3, 3), (3, 3), (4, 3), (4, 3)]),
    ],
)
def test_shards_know_their_place(
    megatron: ModuleType,
    name: PartitionName,
    ranks: int,
    offsets: list[tuple[int, int]],
    sizes: list[tuple[int, int]],
) -> None:
    for found, offset, size in zip(run_distributed(ranks, describe, name), offsets, sizes, strict=True):
        assert found["key"] == "memory.layers.0.table.weight"
        assert found["global"] == (7, 6)
        assert found["offset"] == offset
        assert found["local"] == (*size, *size)
        assert found["replica"] == (0, 0, 0)
        assert found["dtype"] is torch.bfloat16
        # into DDP's expert buffers; counted on every tensor-parallel rank; not summed over them
        assert found["marks"] == (False, True, False)

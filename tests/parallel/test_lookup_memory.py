"""What a lookup keeps for its backward pass, against what the planner counts."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning.comm_cost import LookupShape
from ultramem_megatron.planning.memory_cost import lookup_buffers
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.partition_cases import usual_node_size

TOKENS, PICKS, ROWS, WIDTH, BLOCKS, CORES = 64, 32, 500, 96, 4, 2


def kept_bytes(name: PartitionName, dtype: torch.dtype) -> int:
    """Bytes of the storages that autograd holds, each once, beside the table."""
    from ultramem_megatron.parallel.partition.base import Picks, TableShape
    from ultramem_megatron.testing.partition_runs import build

    table = TableShape(num_rows=ROWS, value_dim=WIDTH, blocks=BLOCKS, cores=CORES)
    partition = build(name, table)
    shard = torch.randn(partition.shard(dist.get_rank()).shape, dtype=dtype).requires_grad_()
    picks = Picks(
        torch.randint(ROWS, (TOKENS, PICKS), dtype=torch.int32),
        torch.randint(BLOCKS, (TOKENS, PICKS), dtype=torch.uint8),
        torch.randn(CORES, TOKENS, PICKS, dtype=dtype).requires_grad_(),
    )
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pooled = partition(shard, picks, [TOKENS] * dist.get_world_size())
    storages = (tensor.untyped_storage() for tensor in (*kept.values(), pooled))
    return sum(storage.nbytes() for storage in storages if storage.data_ptr() != shard.data_ptr())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("partition", "ranks"),
    [
        (PartitionName.REPLICATED, 1),
        (PartitionName.NUMBER_WISE, 2),
        (PartitionName.NUMBER_WISE_POOLED, 2),
        (PartitionName.DIMENSION_WISE, 2),
        (PartitionName.GRID, 4),
    ],
)
def test_a_lookup_keeps_what_the_planner_counts(partition: PartitionName, ranks: int, dtype: torch.dtype) -> None:
    shape = LookupShape(
        tokens=TOKENS,
        picks=PICKS,
        num_rows=ROWS,
        value_dim=WIDTH,
        element_bytes=dtype.itemsize,
        expansion=BLOCKS,
        cores=CORES,
    )
    counted = lookup_buffers(shape, partition, ranks, usual_node_size(ranks))
    for kept in run_distributed(ranks, kept_bytes, partition, dtype):
        assert 0.8 < kept / counted < 1.25

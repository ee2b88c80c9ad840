"""Bytes of plans and partial sums by hand, and against the plans that the kernels make."""

import pytest
import torch

from ultramem_kernels import index_plan
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning import plan_buffers
from ultramem_megatron.planning.comm_cost import LookupShape
from ultramem_megatron.planning.plan_buffers import SummedRows, partial_bytes, plan_bytes

SHAPE = LookupShape(tokens=64, picks=32, num_rows=500, value_dim=96, element_bytes=2, expansion=4, cores=2)
PICKS = 64 * 32


@pytest.mark.parametrize(("picks", "num_rows"), [(PICKS, 500), (PICKS, 10_000), (33, 7)])
def test_a_plan_takes_what_is_counted(picks: int, num_rows: int) -> None:
    assert plan_buffers.CHUNK_PICKS == index_plan.CHUNK_PICKS
    plan = index_plan.make_plan(index_plan.sort_picks(torch.randint(num_rows, (picks,))), num_rows)
    summed = SummedRows(picks, num_rows, 96)
    # but for the last entry of two of its arrays
    assert summed.plan_bytes == sum(tensor.nbytes for tensor in plan.tensors) - 2 * 4
    assert summed.partial_bytes == plan.num_slots * 96 * 4


def test_one_rank_by_hand() -> None:
    """2048 picks, 64 chunks' worth of them; 500 rows, of 96 columns."""
    assert plan_bytes(SHAPE, PartitionName.REPLICATED, 1, 1) == 4 * 2 * (2048 + 64 + 500 + 64)
    assert partial_bytes(SHAPE, PartitionName.REPLICATED, 1, 1) == 2 * 64 * 96 * 4


def test_split_tables_by_hand() -> None:
    """Two ranks. Dimension-wise the picks of both, of half the columns; number-wise also the owner's plan, of some 492
    rows that are asked of 250; pooled at the owners, at most as many sums as picks, of 256 blocks of tokens."""
    assert plan_bytes(SHAPE, PartitionName.DIMENSION_WISE, 2, 1) == 4 * 2 * (4096 + 128 + 500 + 128)
    assert partial_bytes(SHAPE, PartitionName.DIMENSION_WISE, 2, 1) == 2 * 128 * 48 * 4
    asked = 500 * (1 - (1 - 1 / 500) ** 2048)
    owner = 4 * 2 * (asked + 15 + 250 + 15)
    home = plan_bytes(SHAPE, PartitionName.REPLICATED, 1, 1)
    assert plan_bytes(SHAPE, PartitionName.NUMBER_WISE, 2, 1) == pytest.approx(home + owner)
    pooled = 4 * 2 * (2048 + 64 + 250 + 64) + 4 * 2 * (512 + 16 + 256 + 16)
    assert plan_bytes(SHAPE, PartitionName.NUMBER_WISE_POOLED, 2, 1) == pooled
    in_one_node = plan_bytes(SHAPE, PartitionName.GRID, 2, 2)
    assert in_one_node > plan_bytes(SHAPE, PartitionName.DIMENSION_WISE, 2, 1), "a grid fetches rows besides"


def test_gpus_alone_are_charged() -> None:
    from ultramem_megatron.planning.memory_cost import rank_memory
    from ultramem_megatron.planning.workload import workload_of
    from ultramem_megatron.testing.tiny import tiny_config

    config = tiny_config()
    workload = workload_of(config, 1)
    cpu, gpu = (
        rank_memory(config, workload, PartitionName.REPLICATED, 1, on_gpu=on_gpu).lookup_buffers
        for on_gpu in (False, True)
    )
    kept = plan_bytes(workload.lookup, PartitionName.REPLICATED, 1, 1) * workload.busiest_stage_tables
    assert gpu - cpu == kept + partial_bytes(workload.lookup, PartitionName.REPLICATED, 1, 1)

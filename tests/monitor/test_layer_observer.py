"""What an observer of a memory layer records of its owners' load."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.memory.layer import MemoryLayer
from ultramem_megatron.metrics.metric import Reading, Recorder
from ultramem_megatron.monitor.layer_observer import LayerObserver
from ultramem_megatron.parallel.partition.base import Picks, TableShape
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.partition_runs import build

SKEW = "memory/owner_skew/layer0"


def two_reports(name: PartitionName) -> list[dict[str, Reading]]:
    """All ranks pick row 0, twice; then nobody picks anything."""
    world = dist.group.WORLD
    assert world is not None
    partition = build(name, TableShape(num_rows=4, value_dim=2))
    weight = torch.zeros(partition.shard(world.rank()).shape)
    stub: Any = SimpleNamespace(
        table=SimpleNamespace(partition=partition, weight=weight), summed_core=None, penalty=lambda: None, observer=None
    )
    recorder = Recorder()
    recorder.enabled = True
    observer = LayerObserver(cast(MemoryLayer, stub), "layer0", recorder, world)
    rows_TK = torch.zeros(1, 2, dtype=torch.int32)
    partition(weight, Picks(rows_TK, rows_TK.to(torch.uint8), torch.ones(1, 1, 2)), [1] * world.size())
    reports = []
    for _ in range(2):
        observer.report()
        reports.append(recorder.drain())
    return reports


@pytest.mark.parametrize(
    ("name", "ranks"),
    [(PartitionName.NUMBER_WISE, 2), (PartitionName.NUMBER_WISE_POOLED, 2), (PartitionName.GRID, 4)],
)
def test_one_owner_of_two_serves_all(name: PartitionName, ranks: int) -> None:
    """Of a grid, one node of two, its ranks evenly."""
    for busy, idle in run_distributed(ranks, two_reports, name):
        assert busy[SKEW].value == 2.0
        assert SKEW not in idle, "reports start anew"


def test_an_even_partition_reports_no_skew() -> None:
    for reports in run_distributed(2, two_reports, PartitionName.DIMENSION_WISE):
        assert not any(SKEW in report for report in reports)

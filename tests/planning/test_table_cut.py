"""What the planner says of a partition's cut is what the partition does."""

from types import SimpleNamespace
from typing import Any

import pytest

from ultramem_megatron.checkpoint.reshard import Cut, Rectangle
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.errors import ConfigError
from ultramem_megatron.parallel.partition.base import TableShape
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.planning.table_cut import table_parts

TABLE = TableShape(num_rows=37, value_dim=24)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize(("ranks", "node_size"), [(1, 1), (2, 1), (4, 2), (6, 3), (8, 4), (8, 2)])
def test_every_partition_cuts_so(partition: PartitionName, ranks: int, node_size: int) -> None:
    inside, across = SimpleNamespace(size=node_size), SimpleNamespace(size=ranks // node_size)
    channel: Any = SimpleNamespace(size=ranks, inside=inside, across=across)
    shards = [PARTITIONS[partition](TABLE, channel).shard(rank) for rank in range(ranks)]
    cut = Cut(*table_parts(partition, ranks, node_size))
    rectangles = cut.rectangles((TABLE.num_rows, TABLE.value_dim))
    if partition is PartitionName.REPLICATED:
        rectangles *= ranks
    assert [Rectangle(shard.rows, shard.columns) for shard in shards] == rectangles


def test_auto_is_no_cut() -> None:
    with pytest.raises(ConfigError, match=r"partition auto says nothing of where a table is cut"):
        table_parts(PartitionName.AUTO, 4)
    with pytest.raises(ConfigError, match=r"the ranks of a node = 3 .* 8"):
        table_parts(PartitionName.GRID, 8, 3)

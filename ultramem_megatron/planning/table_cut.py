"""How a partition cuts a table: its rows into so many parts, the columns of each into so many.

The ranks of a group come in the order of the rows, and within a part of the rows in that of the columns.
``tests/planning/test_table_cut.py`` holds this against what every partition says of its shards.
"""

from ultramem_megatron.config.check import require_divides
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.errors import ConfigError


def table_parts(partition: PartitionName, ranks: int, node_size: int = 1) -> tuple[int, int]:
    """Parts of the rows, and of the columns.

    Args:
        partition: Any but ``auto``.
        ranks: Of the ``mem`` group.
        node_size: Of them, those that count as one node; for a grid alone.

    Raises:
        ConfigError: ``auto`` is no cut, or ``node_size`` does not divide ``ranks``.
    """
    match partition:
        case PartitionName.NUMBER_WISE | PartitionName.NUMBER_WISE_POOLED:
            return ranks, 1
        case PartitionName.DIMENSION_WISE:
            return 1, ranks
        case PartitionName.GRID:
            require_divides("the ranks of a node", node_size, "the ranks that share a table", ranks)
            return ranks // node_size, node_size
        case PartitionName.REPLICATED:
            return 1, 1
    raise ConfigError(f"partition {partition} says nothing of where a table is cut; name one that does")

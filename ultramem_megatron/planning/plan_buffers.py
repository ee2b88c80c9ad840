"""Bytes of the plans by which a GPU sums gradients by row, and of the partial sums of rows that many picks name.

A CPU has neither: ``parallel/partition/row_plan.py``. Sizes are those of ``ultramem_kernels/index_plan/plan.py``, whose
arrays are as long as they could need to be.
"""

from dataclasses import dataclass

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning.comm_cost import FP32_BYTES, INT32_BYTES, LookupShape
from ultramem_megatron.planning.skew import expected_distinct

# Letters: T tokens, K picks per token, P ranks, L ranks of a node.

CHUNK_PICKS = 32
"""Picks of a chunk, as the kernels have it."""


@dataclass(frozen=True, slots=True)
class SummedRows:
    """Picks whose gradients are summed by row on one rank."""

    picks: float
    num_rows: float
    """Of the table in which they are summed."""
    width: int
    """Columns of it."""

    @property
    def plan_bytes(self) -> float:
        """Kept from forward to backward: rows and order of the picks, starts and slots of chunks, runs of several."""
        runs = self.picks // CHUNK_PICKS
        chunks = runs + min(self.picks, self.num_rows)
        return INT32_BYTES * 2 * (self.picks + chunks + runs)

    @property
    def partial_bytes(self) -> float:
        """While the sums are made: two slots for each chunk's worth of picks."""
        return 2 * (self.picks // CHUNK_PICKS) * self.width * FP32_BYTES


def plan_bytes(shape: LookupShape, partition: PartitionName, ranks: int, node_size: int) -> float:
    """Bytes that the plans of one lookup, and of its inner products, keep for the backward pass."""
    return sum(summed.plan_bytes for summed in _summed_of_layer(shape, partition, ranks, node_size))


def partial_bytes(shape: LookupShape, partition: PartitionName, ranks: int, node_size: int) -> float:
    """Bytes of the partial sums while one backward pass makes them, the most that are there at a time."""
    return max(summed.partial_bytes for summed in _summed_of_layer(shape, partition, ranks, node_size))


def _summed_of_layer(shape: LookupShape, partition: PartitionName, ranks: int, node_size: int) -> list[SummedRows]:
    widths = [shape.value_dim] + ([shape.pre_value_dim] if shape.pre_value_dim else [])
    return [summed for width in widths for summed in summed_rows(shape, width, partition, ranks, node_size)]


def summed_rows(
    shape: LookupShape, width: int, partition: PartitionName, ranks: int, node_size: int
) -> list[SummedRows]:
    """What one lookup sums on a rank.

    Args:
        shape: The lookup.
        width: Columns of the table.
        partition: How it is split.
        ranks: P.
        node_size: L; matters to a grid alone.
    """
    picks, rows = shape.tokens * shape.picks, shape.num_rows
    match partition:
        case PartitionName.REPLICATED:
            return [SummedRows(picks, rows, width)]
        case PartitionName.DIMENSION_WISE:
            return [SummedRows(picks * ranks, rows, -(-width // ranks))]
        case PartitionName.NUMBER_WISE:
            # at home the picks; at the owner the rows that were asked for, as many as this rank asks for
            asked = expected_distinct(picks, rows)
            return [SummedRows(picks, rows, width), SummedRows(asked, -(-rows // ranks), width)]
        case PartitionName.GRID:
            asked, columns = expected_distinct(picks * node_size, rows), -(-width // node_size)
            return [
                SummedRows(picks * node_size, rows, columns),
                SummedRows(asked, -(-rows * node_size // ranks), columns),
            ]
        case PartitionName.NUMBER_WISE_POOLED:
            # at the owner the picks of others; at home what comes back, of which no owner sends more than a sum a token
            # and block
            keys = shape.tokens * shape.expansion
            back = min(picks, keys * ranks)
            return [SummedRows(picks, -(-rows // ranks), width), SummedRows(back, keys, width)]
        case PartitionName.AUTO:
            raise AssertionError("a plan names a partition; auto is for the config")

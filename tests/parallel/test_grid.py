"""The grid in nodes of every size; ``test_partitions.py`` holds it to the contract in two nodes."""

import pytest
import torch

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.parallel.partition.base import Shard, TableShape
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.partition_bytes import assert_predicted_bytes
from ultramem_megatron.testing.partition_cases import (
    NUM_ROWS,
    RAGGED,
    VALUE_DIM,
    Case,
    MakeCase,
    make_lookup,
    make_products,
    matrix_of_cases,
)
from ultramem_megatron.testing.partition_runs import assert_equals_unsplit, compute, run_cases, shards

OPERATIONS = pytest.mark.parametrize("make", [make_lookup, make_products], ids=["lookup", "products"])


def small_case(make: MakeCase, ranks: int, node_size: int, dtype: torch.dtype = torch.float32) -> Case:
    """Two blocks and cores, and few rows, so that they repeat in a rank and in a node."""
    shape = TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM, blocks=4, cores=2)
    return make(shape, RAGGED[ranks], dtype, torch.arange(4, NUM_ROWS), node_size=node_size)


@OPERATIONS
def test_four_nodes_of_two(make: MakeCase) -> None:
    """Beside two of four: the whole matrix of cases but those of one block and core."""
    cases = [
        case for case in matrix_of_cases(make, 8, node_size=2).values() if make is make_products or case.shape.cores > 1
    ]
    for case, found in run_cases(PartitionName.GRID, 8, cases):
        assert_equals_unsplit(PartitionName.GRID, case, found)
        assert_predicted_bytes(PartitionName.GRID, case, found)


@OPERATIONS
@pytest.mark.parametrize(
    ("node_size", "same_as"), [(1, PartitionName.NUMBER_WISE), (3, PartitionName.DIMENSION_WISE)], ids=str
)
def test_one_node_or_nodes_of_one_rank(make: MakeCase, node_size: int, same_as: PartitionName) -> None:
    """The same outputs and gradients, and no byte more."""
    case = small_case(make, 3, node_size)
    ((_, grid),) = run_cases(PartitionName.GRID, 3, [case])
    ((_, plain),) = run_cases(same_as, 3, [case])
    assert_equals_unsplit(PartitionName.GRID, case, grid)
    for one, other in zip(grid, plain, strict=True):
        assert torch.equal(one.output_T, other.output_T)
        torch.testing.assert_close(one.table_grad_nv, other.table_grad_nv)
        torch.testing.assert_close(one.input_grad_T, other.input_grad_T)
        assert one.traffic.forward_bytes == other.traffic.forward_bytes
        assert one.traffic.backward_bytes == other.traffic.backward_bytes


def test_a_rank_holds_columns_of_its_nodes_rows() -> None:
    """Three nodes of two: rows by node, columns by place, whatever the rest of a division."""
    halves = [range(3), range(3, 6)]
    rows = [range(2), range(2, 4), range(4, 7)]
    expected = [Shard(of_node, of_place) for of_node in rows for of_place in halves]
    assert shards(PartitionName.GRID, TableShape(num_rows=7, value_dim=6), 6, node_size=2) == expected


def served(case: Case) -> tuple[int, int]:
    traffic = compute(PartitionName.GRID, case).traffic
    return traffic.served_requests, traffic.backward_bytes


def test_a_row_is_asked_for_once_a_node() -> None:
    """All four ranks pick row 12 of the second node, whose ranks send half of it to the first node: once, for two."""
    case = make_products(TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM), [3] * 4, torch.float32, torch.tensor([12]))
    inside_bytes = 4 * 3 * 6 + 4 * 3 * VALUE_DIM // 2  # gradients of products gathered, halves of those of vectors back
    of_row = 4 * VALUE_DIM // 2
    results = run_distributed(4, served, case)
    assert [requests for requests, _ in results] == [0, 0, 2, 2]
    assert [sent - inside_bytes for _, sent in results] == [of_row, of_row, 0, 0]

"""Every partition equals the unsplit table, in outputs and in every gradient, and sends what the planner counts.

It does so in both of its operations, the lookup and the inner products. To test a new partition, put what it sends
into ``ultramem_megatron/testing/partition_bytes.py``: the tests below take it from ``PARTITIONS``.
"""

# Letters: V value dimension, T tokens of a rank, G of all, K picks per token, E blocks, h score cores.

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.parallel.channel import Channel
from ultramem_megatron.parallel.partition.base import Picks, TableShape
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.testing.budget import is_deep
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.partition_bytes import assert_bytes, assert_predicted_bytes, predicted_bytes
from ultramem_megatron.testing.partition_cases import (
    DTYPES,
    NUM_ROWS,
    RAGGED,
    VALUE_DIM,
    Case,
    Lookup,
    MakeCase,
    Products,
    make_lookup,
    make_products,
    matrix_of_cases,
)
from ultramem_megatron.testing.partition_runs import (
    Found,
    assemble,
    assert_equals_unsplit,
    compute,
    cut,
    run_cases,
    world_channel,
)
from ultramem_megatron.testing.tolerances import assert_agrees

OPERATIONS = pytest.mark.parametrize("make", [make_lookup, make_products], ids=["lookup", "products"])
SPLITS = [name for name in PARTITIONS if name is not PartitionName.REPLICATED]


def compute_matrix(names: list[PartitionName], cases: Mapping[str, Case]) -> dict[tuple[PartitionName, str], Found]:
    return {(name, title): compute(name, case) for name in names for title, case in cases.items()}


@OPERATIONS
@pytest.mark.parametrize("ranks", RAGGED)
def test_equals_the_unsplit_table_and_sends_what_was_counted(ranks: int, make: MakeCase) -> None:
    """All partitions and cases on the same forked ranks: eight processes are dear to start."""
    names = list(PARTITIONS) if ranks == 1 else SPLITS
    cases = matrix_of_cases(make, ranks)
    if ranks == 8 and make is make_lookup and not is_deep():  # fewer ranks have those of one block and core
        cases = {title: case for title, case in cases.items() if case.shape.cores > 1}
    by_rank = run_distributed(ranks, compute_matrix, names, cases)
    for name, title in by_rank[0]:
        found = [results[name, title] for results in by_rank]
        try:
            assert_equals_unsplit(name, cases[title], found)
            assert_predicted_bytes(name, cases[title], found)
        except AssertionError as error:
            error.add_note(f"{name} over {ranks} ranks: {title}")
            raise


@OPERATIONS
@pytest.mark.parametrize("name", SPLITS)
def test_the_same_bits_twice(name: PartitionName, make: MakeCase) -> None:
    case = make(TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM), RAGGED[4], torch.float32, torch.arange(NUM_ROWS))
    (_, first), (_, second) = run_cases(name, 4, [case, case])
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.output_T, other.output_T)
        assert torch.equal(one.table_grad_nv, other.table_grad_nv)
        assert torch.equal(one.input_grad_T, other.input_grad_T)


@settings(max_examples=12, deadline=None)
@given(
    make=st.sampled_from([make_lookup, make_products]),
    name=st.sampled_from([name for name in PARTITIONS if name is not PartitionName.REPLICATED]),
    ranks=st.integers(1, 4),
    rows=st.integers(4, 40),
    width=st.integers(1, 3),
    cores=st.integers(1, 3),
    blocks=st.integers(1, 5),
    tokens=st.integers(0, 4),
    picks=st.integers(1, 7),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(
    make: MakeCase,
    name: PartitionName,
    ranks: int,
    rows: int,
    width: int,
    cores: int,
    blocks: int,
    tokens: int,
    picks: int,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)  # an example is the same whenever it is tried
    shape = TableShape(num_rows=rows, value_dim=width * cores * ranks, blocks=blocks, cores=cores)
    case = make(shape, [tokens] * ranks, dtype, torch.arange(rows), picks)
    ((_, found),) = run_cases(name, ranks, [case])
    assert_predicted_bytes(name, case, found)
    assert_equals_unsplit(name, case, found)


@dataclass(frozen=True)
class Weighted:
    """A lookup whose scores are multiplied by inner products with a second table, as UltraMemV2 does."""

    lookup: Lookup
    products: Products

    def score(self, products_TK: Tensor, scores_ThK: Tensor) -> Tensor:
        return (scores_ThK * products_TK.unsqueeze(1)).to(scores_ThK.dtype)


def compute_weighted(name: PartitionName, case: Weighted) -> tuple[Found, Found]:
    """Both tables talk over one channel. The outputs are the pooled rows and the products."""
    rank, channel = dist.get_rank(), world_channel(name)
    partitions = [PARTITIONS[name](part.shape, channel) for part in (case.products, case.lookup)]
    cases = (case.products, case.lookup)
    weights = [
        cut(part.table_NV, partition.shard(rank)).clone().requires_grad_()
        for part, partition in zip(cases, partitions, strict=True)
    ]
    vectors_TV, scores_ThK = (part.of_rank(part.input_G, rank).clone().requires_grad_() for part in cases)
    products_TK = case.products.run(partitions[0], weights[0], vectors_TV, rank)
    pooled_TEV = case.lookup.run(partitions[1], weights[1], case.score(products_TK, scores_ThK), rank)
    pooled_TEV.backward(case.lookup.of_rank(case.lookup.cotangent_G, rank))
    grads = [x.grad for x in (*weights, vectors_TV, scores_ThK)]
    assert all(grad is not None for grad in grads)
    return (
        Found(pooled_TEV.detach(), grads[1], grads[3], channel.traffic),  # type: ignore[arg-type]
        Found(products_TK.detach(), grads[0], grads[2], channel.traffic),  # type: ignore[arg-type]
    )


def make_weighted(ranks: int, dtype: torch.dtype) -> Weighted:
    """The same picks, and a pre-value twice as wide as a value."""
    tokens, rows = [2] * ranks, torch.arange(NUM_ROWS)
    lookup = make_lookup(TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM, cores=2), tokens, dtype, rows)
    products = make_products(TableShape(num_rows=NUM_ROWS, value_dim=2 * VALUE_DIM), tokens, dtype, rows)
    return Weighted(lookup, replace(products, rows_GK=lookup.rows_GK))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "ranks"), [(PartitionName.REPLICATED, 1), *((name, 4) for name in SPLITS)])
def test_products_weigh_a_lookup(name: PartitionName, ranks: int, dtype: torch.dtype) -> None:
    case = make_weighted(ranks, dtype)
    looked_up, multiplied = zip(*run_distributed(ranks, compute_weighted, name, case), strict=True)
    tables = [part.table_NV.double().requires_grad_() for part in (case.products, case.lookup)]
    vectors_GV, scores_GhK = (part.input_G.double().requires_grad_() for part in (case.products, case.lookup))
    products_GK = case.products.definition(tables[0], vectors_GV)
    pooled_GEV = case.lookup.definition(tables[1], case.score(products_GK, scores_GhK))
    pooled_GEV.backward(case.lookup.cotangent_G.double())

    expected = ((looked_up, case.lookup, tables[1], scores_GhK), (multiplied, case.products, tables[0], vectors_GV))
    for found, part, table_NV, input_G in expected:
        assert table_NV.grad is not None and input_G.grad is not None
        table_grad = assemble(name, part.shape, ranks, [f.table_grad_nv for f in found])
        assert_agrees(table_grad, table_NV.grad, computed_in=dtype)
        assert_agrees(torch.cat([f.input_grad_T for f in found]), input_G.grad, computed_in=dtype)
    assert_agrees(torch.cat([f.output_T for f in looked_up]), pooled_GEV.detach(), computed_in=dtype)
    wires = zip(*(predicted_bytes(name, part, ranks) for part in (case.lookup, case.products)), strict=True)
    assert_bytes(looked_up, [of_lookup + of_products for of_lookup, of_products in wires])


def repeat_a_row_of_rank_0() -> tuple[Tensor, int]:
    """Three tokens of rank 1 pick row 0, with gradients 256, 1 and 1: the gradient that arrives, and what was sent."""
    channel = Channel(dist.group.WORLD)
    partition = PARTITIONS[PartitionName.NUMBER_WISE](TableShape(num_rows=2, value_dim=1), channel)
    tokens = [0, 3]
    mine = tokens[channel.rank]
    weight_nv = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    rows_TK = torch.zeros(mine, 1, dtype=torch.int32)
    picks = Picks(rows_TK, rows_TK.to(torch.uint8), torch.ones(1, mine, 1, dtype=torch.bfloat16))
    cotangent = torch.tensor([256.0, 1, 1], dtype=torch.bfloat16).view(3, 1, 1)[:mine]
    partition(weight_nv, picks, tokens).backward(cotangent)
    assert weight_nv.grad is not None
    return weight_nv.grad, channel.traffic.backward_bytes


def test_gradients_of_a_repeated_row_travel_as_one_rounded_once() -> None:
    """256 + 1 + 1 is 256 in bf16 if rounded after each addition."""
    (grad, _), (_, sent_bytes) = run_distributed(2, repeat_a_row_of_rank_0)
    assert grad.item() == 258
    assert sent_bytes == 2


def score_gradient_over_two_columns() -> Tensor:
    """Each rank has one column, and one token whose score's gradient is (1 + 2**-7) ** 2 - (1 + 2**-6)."""
    channel = Channel(dist.group.WORLD)
    partition = PARTITIONS[PartitionName.DIMENSION_WISE](TableShape(num_rows=1, value_dim=2), channel)
    table_NV = torch.tensor([[1 + 2.0**-7, -1]], dtype=torch.bfloat16)
    weight_nv = cut(table_NV, partition.shard(channel.rank)).clone().requires_grad_()
    scores_hTK = torch.ones(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    zeros_TK = torch.zeros(1, 1, dtype=torch.int32)
    cotangent = torch.tensor([[[1 + 2.0**-7, 1 + 2.0**-6]]], dtype=torch.bfloat16)
    partition(weight_nv, Picks(zeros_TK, zeros_TK.to(torch.uint8), scores_hTK), [1, 1]).backward(cotangent)
    assert scores_hTK.grad is not None and scores_hTK.grad.dtype is torch.bfloat16
    return scores_hTK.grad


def test_score_gradients_are_rounded_after_the_columns_are_summed() -> None:
    """The columns' parts differ by 2**-14, which is nothing once either is rounded to bf16."""
    assert [grad.item() for grad in run_distributed(2, score_gradient_over_two_columns)] == [2.0**-14] * 2


def served(name: PartitionName, case: Case) -> int:
    return compute(name, case).traffic.served_requests


def test_owners_count_the_requests_they_serve() -> None:
    """Row 12 belongs to the last of three ranks, which all ask it once."""
    shape = TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM)
    case = make_lookup(shape, [3] * 3, torch.float32, torch.tensor([12]))
    assert run_distributed(3, served, PartitionName.NUMBER_WISE, case) == [0, 0, 3]
    assert run_distributed(3, served, PartitionName.DIMENSION_WISE, case) == [0, 0, 0]


def test_registry_names_every_partition() -> None:
    assert set(PARTITIONS) == set(PartitionName) - {PartitionName.AUTO}

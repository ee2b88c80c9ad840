"""Every partition equals the unsplit lookup, in outputs and in every gradient, and sends what the planner counts.

To test a new partition, add it to ``SPLITS``, and what it sends to ``predicted_bytes``.
"""

# Letters: N rows of the table, V value dimension, n and v one rank's share of them, T tokens of a rank, G of all,
#          K picks per token, E blocks, h score cores, P ranks.

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.parallel.channel import Channel, Traffic
from ultramem_megatron.parallel.partition.base import Picks, Shard, TableShape, ValuePartition
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.planning.comm_cost import (
    LookupShape,
    WireBytes,
    dimension_wise_bytes,
    number_wise_bytes,
    partition_bytes,
)
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.reference_layer import reference_pooling
from ultramem_megatron.testing.tolerances import assert_agrees

SPLITS = [
    (PartitionName.REPLICATED, 1),
    *itertools.product([PartitionName.NUMBER_WISE, PartitionName.DIMENSION_WISE], [1, 2, 3, 4]),
]
NUM_ROWS = 13  # no multiple of 2, 3 or 4
VALUE_DIM = 12  # with two cores, 3 ranks hold columns of both cores, and 4 ranks a part of one
NUM_PICKS = 6
RAGGED = {1: [5], 2: [5, 0], 3: [5, 0, 3], 4: [5, 0, 3, 1]}
SOME_ROWS = torch.arange(NUM_ROWS)
DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Case:
    """One lookup by all ranks of a group, with all that they hold."""

    shape: TableShape
    tokens: list[int]
    table_NV: Tensor
    rows_GK: Tensor
    blocks_GK: Tensor
    scores_hGK: Tensor
    cotangent_GEV: Tensor

    def of_rank(self, whole: Tensor, rank: int, dim: int = 0) -> Tensor:
        """The tokens of ``rank``."""
        return whole.split(self.tokens, dim)[rank]

    def picks(self, rank: int) -> Picks:
        rows, blocks = self.of_rank(self.rows_GK, rank), self.of_rank(self.blocks_GK, rank)
        scores = self.of_rank(self.scores_hGK, rank, dim=1).detach().clone()
        return Picks(rows.int(), blocks.to(torch.uint8), scores.requires_grad_())

    def lookup_shape(self, rank: int) -> LookupShape:
        return LookupShape(
            tokens=self.tokens[rank],
            picks=self.rows_GK.shape[1],
            value_dim=self.shape.value_dim,
            element_bytes=self.table_NV.element_size(),
            expansion=self.shape.blocks,
            cores=self.shape.cores,
        )


@dataclass(frozen=True)
class Found:
    """What one rank computes."""

    pooled_TEV: Tensor
    table_grad_nv: Tensor
    scores_grad_hTK: Tensor
    traffic: Traffic


def make_case(
    shape: TableShape, tokens: list[int], dtype: torch.dtype, candidates: Tensor, picks: int = NUM_PICKS
) -> Case:
    """Random everything; rows are drawn from ``candidates``, so few of them repeat in a token and across ranks."""
    total = sum(tokens)
    return Case(
        shape=shape,
        tokens=tokens,
        table_NV=torch.randn(shape.num_rows, shape.value_dim).to(dtype),
        rows_GK=candidates[torch.randint(len(candidates), (total, picks))],
        blocks_GK=torch.randint(shape.blocks, (total, picks)),
        scores_hGK=torch.randn(shape.cores, total, picks).to(dtype),
        cotangent_GEV=torch.randn(total, shape.blocks, shape.value_dim).to(dtype),
    )


def make_cases(ranks: int) -> list[Case]:
    """Every combination of E, h, type, ragged, equal or no tokens, any rows or those of one or two owners."""
    return [
        make_case(TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM, blocks=E, cores=h), tokens, dtype, candidates)
        for E, h, dtype, tokens, candidates in itertools.product(
            [1, 4],
            [1, 2],
            DTYPES,
            [RAGGED[ranks], [3] * ranks, [0] * ranks],
            [SOME_ROWS, torch.tensor([NUM_ROWS - 1]), torch.tensor([0, 7])],
        )
        if sum(tokens) or candidates is SOME_ROWS
    ]


def build(name: PartitionName, shape: TableShape) -> ValuePartition:
    return PARTITIONS[name](shape, Channel(dist.group.WORLD))


def look_up(name: PartitionName, case: Case) -> Found:
    """On one of the ranks: forward and backward with this rank's shard and tokens."""
    rank = dist.get_rank()
    partition = build(name, case.shape)
    weight_nv = cut(case.table_NV, partition.shard(rank)).clone().requires_grad_()
    picks = case.picks(rank)
    pooled_TEV = partition(weight_nv, picks, case.tokens)
    pooled_TEV.backward(case.of_rank(case.cotangent_GEV, rank))
    assert pooled_TEV.dtype == weight_nv.dtype
    assert weight_nv.grad is not None and picks.scores_hTK.grad is not None
    return Found(pooled_TEV.detach(), weight_nv.grad, picks.scores_hTK.grad, partition.channel.traffic)


def look_up_all(name: PartitionName, cases: Sequence[Case]) -> list[Found]:
    return [look_up(name, case) for case in cases]


def run_cases(name: PartitionName, ranks: int, cases: Sequence[Case]) -> list[tuple[Case, list[Found]]]:
    """All cases on the same forked ranks: each case with what the ranks found, in their order."""
    by_rank = run_distributed(ranks, look_up_all, name, cases)
    return [(case, list(found)) for case, found in zip(cases, zip(*by_rank, strict=True), strict=True)]


def cut(table_NV: Tensor, shard: Shard) -> Tensor:
    return table_NV[shard.rows.start : shard.rows.stop, shard.columns.start : shard.columns.stop]


def assemble(name: PartitionName, shape: TableShape, ranks: int, pieces: Sequence[Tensor]) -> Tensor:
    """The whole table from the ranks' shards; a cell that no shard covers is NaN, one that two cover is refused."""
    whole_NV = torch.full((shape.num_rows, shape.value_dim), torch.nan, dtype=pieces[0].dtype)
    for shard, piece in zip(shards(name, shape, ranks), pieces, strict=True):
        assert cut(whole_NV, shard).isnan().all()
        cut(whole_NV, shard).copy_(piece)
    return whole_NV


class FakeGroup:
    """Enough of a process group to ask a partition for its shards."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks


def shards(name: PartitionName, shape: TableShape, ranks: int) -> list[Shard]:
    partition = PARTITIONS[name](shape, Channel(FakeGroup(ranks)))  # type: ignore[arg-type]
    return [partition.shard(rank) for rank in range(ranks)]


def unsplit(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """The oracle, in float64 on the whole table: pooled [G, E, V], gradients of table [N, V] and scores [h, G, K]."""
    table_NV = case.table_NV.double().requires_grad_()
    scores_hGK = case.scores_hGK.double().requires_grad_()
    pooled = reference_pooling(table_NV, case.rows_GK, case.blocks_GK, scores_hGK, num_blocks=case.shape.blocks)
    if not sum(case.tokens):
        return pooled, torch.zeros_like(table_NV), torch.zeros_like(scores_hGK)
    pooled.backward(case.cotangent_GEV.double())
    assert table_NV.grad is not None and scores_hGK.grad is not None
    return pooled.detach(), table_NV.grad, scores_hGK.grad


@pytest.mark.parametrize(("name", "ranks"), SPLITS)
def test_equals_the_unsplit_lookup(name: PartitionName, ranks: int) -> None:
    for case, found in run_cases(name, ranks, make_cases(ranks)):
        dtype = case.table_NV.dtype
        pooled_GEV, table_grad_NV, scores_grad_hGK = unsplit(case)
        assert_agrees(torch.cat([f.pooled_TEV for f in found]), pooled_GEV, computed_in=dtype)
        table_grad = assemble(name, case.shape, ranks, [f.table_grad_nv for f in found])
        assert_agrees(table_grad, table_grad_NV, computed_in=dtype)
        assert_agrees(torch.cat([f.scores_grad_hTK for f in found], dim=1), scores_grad_hGK, computed_in=dtype)


@pytest.mark.parametrize(("name", "ranks"), [split for split in SPLITS if split[1] == 4])
def test_a_lookup_gives_the_same_bits_twice(name: PartitionName, ranks: int) -> None:
    case = make_case(TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM), RAGGED[ranks], torch.float32, SOME_ROWS)
    (_, first), (_, second) = run_cases(name, ranks, [case, case])
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.pooled_TEV, other.pooled_TEV)
        assert torch.equal(one.table_grad_nv, other.table_grad_nv)
        assert torch.equal(one.scores_grad_hTK, other.scores_grad_hTK)


# --- Gradients in main_grad -------------------------------------------------------------------------------------------


class LargestResult(TorchDispatchMode):
    """Elements of the largest tensor that came newly into being."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in args if isinstance(x, Tensor)}
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                self.elements = max(self.elements, x.numel())
        return result


def accumulate_twice(name: PartitionName, case: Case) -> tuple[Tensor, int, int]:
    """Two micro-batches into one ``main_grad``, as DDP has it.

    Returns:
        main_grad, the bytes that the parameter's own gradient owns, the largest tensor made in the second backward.
    """
    rank = dist.get_rank()
    partition = build(name, case.shape)
    weight_nv = torch.nn.Parameter(cut(case.table_NV, partition.shard(rank)).clone())
    weight_nv.main_grad = torch.zeros(weight_nv.shape)  # type: ignore[attr-defined]
    owned_bytes, largest = 0, LargestResult()
    for micro_batch in range(2):
        weight_nv.grad_added_to_main_grad = False  # type: ignore[attr-defined]
        pooled_TEV = partition(weight_nv, case.picks(rank), case.tokens)
        cotangent = case.of_rank(case.cotangent_GEV, rank)
        if micro_batch:
            with largest:
                pooled_TEV.backward(cotangent)
        else:
            pooled_TEV.backward(cotangent)
        assert weight_nv.grad_added_to_main_grad is True  # type: ignore[attr-defined]
        assert weight_nv.grad is not None and weight_nv.grad.shape == weight_nv.shape
        owned_bytes += weight_nv.grad.untyped_storage().size()
        weight_nv.grad = None  # as DDP's hook does
    return weight_nv.main_grad, owned_bytes, largest.elements  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def dispatch_modes() -> None:
    """torch imports its compiler, a second, when a dispatch mode is first entered: once here, not in every rank."""
    with LargestResult():
        torch.zeros(1)


@pytest.mark.usefixtures("dispatch_modes")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "ranks"), [split for split in SPLITS if split[1] != 2])
def test_gradients_land_in_main_grad(name: PartitionName, ranks: int, dtype: torch.dtype) -> None:
    shape = TableShape(num_rows=509, value_dim=VALUE_DIM, blocks=4, cores=2)
    case = make_case(shape, RAGGED[ranks], dtype, torch.tensor([0, 100, 200, 300, 508]))
    results = run_distributed(ranks, accumulate_twice, name, case)
    main_grad_NV = assemble(name, shape, ranks, [main_grad for main_grad, _, _ in results])
    assert main_grad_NV.dtype is torch.float32
    assert_agrees(main_grad_NV, 2 * unsplit(case)[1], computed_in=dtype)
    assert main_grad_NV[1:100].count_nonzero() == 0, "a row that nobody picked"
    for _, owned_bytes, largest in results:
        assert owned_bytes == 0
        assert largest < 509 * VALUE_DIM / ranks / 2, "a gradient of the size of the shard was made"


# --- Bytes ------------------------------------------------------------------------------------------------------------


def number_wise_counts(case: Case, ranks: int) -> list[tuple[int, int]]:
    """For each rank: its lookups of rows that others own, and the lookups of others that it serves."""
    owner_N = torch.empty(case.shape.num_rows, dtype=torch.int64)
    for rank, shard in enumerate(shards(PartitionName.NUMBER_WISE, case.shape, ranks)):
        owner_N[shard.rows.start : shard.rows.stop] = rank
    owners = [owner_N[case.of_rank(case.rows_GK, rank)] for rank in range(ranks)]
    return [
        (
            int((owners[rank] != rank).sum()),
            sum(int((owners[other] == rank).sum()) for other in range(ranks) if other != rank),
        )
        for rank in range(ranks)
    ]


def predicted_bytes(name: PartitionName, case: Case, ranks: int) -> list[WireBytes]:
    """What the planner says that each rank sends, knowing the picks."""
    shapes = [case.lookup_shape(rank) for rank in range(ranks)]
    match name:
        case PartitionName.NUMBER_WISE:
            counts = number_wise_counts(case, ranks)
            return [number_wise_bytes(shape, ranks, *count) for shape, count in zip(shapes, counts, strict=True)]
        case PartitionName.DIMENSION_WISE:
            return [dimension_wise_bytes(shape, ranks) for shape in shapes]
        case _:
            return [WireBytes() for _ in shapes]


def assert_bytes(found: Sequence[Found], predicted: Sequence[WireBytes]) -> None:
    for one, wire in zip(found, predicted, strict=True):
        assert one.traffic.forward_bytes == wire.forward_bytes
        assert one.traffic.backward_bytes == wire.backward_bytes


@pytest.mark.parametrize(("name", "ranks"), SPLITS)
def test_counted_bytes_equal_the_planners(name: PartitionName, ranks: int) -> None:
    cases = [
        make_case(TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM, blocks=E, cores=h), [3] * ranks, dtype, SOME_ROWS)
        for E, h, dtype in itertools.product([1, 4], [1, 2], DTYPES)
    ]
    for case, found in run_cases(name, ranks, cases):
        assert_bytes(found, predicted_bytes(name, case, ranks))


@pytest.mark.parametrize(("name", "ranks"), [split for split in SPLITS if split[1] > 2])
def test_counted_bytes_with_ragged_tokens(name: PartitionName, ranks: int) -> None:
    """Number-wise to the byte on each rank. Dimension-wise assumes equal ranks, and is right for their sum."""
    shape = TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM, blocks=4, cores=2)
    case = make_case(shape, RAGGED[ranks], torch.float32, SOME_ROWS)
    ((_, found),) = run_cases(name, ranks, [case])
    predicted = predicted_bytes(name, case, ranks)
    if name is PartitionName.NUMBER_WISE:
        assert_bytes(found, predicted)
    assert sum(f.traffic.forward_bytes for f in found) == sum(wire.forward_bytes for wire in predicted)
    assert sum(f.traffic.backward_bytes for f in found) == sum(wire.backward_bytes for wire in predicted)


@pytest.mark.parametrize(("name", "ranks"), [split for split in SPLITS if split[1] in (2, 4)])
def test_expected_bytes_are_those_of_balanced_picks(name: PartitionName, ranks: int) -> None:
    """Each token picks as many rows of each owner: then the expectation, which a plan is made from, is exact."""
    shape = TableShape(num_rows=12, value_dim=VALUE_DIM, blocks=4, cores=2)
    case = make_case(shape, [2] * ranks, torch.bfloat16, torch.arange(12), picks=12)
    case.rows_GK.copy_(torch.arange(12).roll(5))
    ((_, found),) = run_cases(name, ranks, [case])
    assert_bytes(found, [partition_bytes(name, case.lookup_shape(rank), ranks) for rank in range(ranks)])


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from([PartitionName.NUMBER_WISE, PartitionName.DIMENSION_WISE]),
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
    case = make_case(shape, [tokens] * ranks, dtype, torch.arange(rows), picks)
    ((_, found),) = run_cases(name, ranks, [case])
    assert_bytes(found, predicted_bytes(name, case, ranks))
    pooled_GEV, table_grad_NV, _ = unsplit(case)
    assert_agrees(torch.cat([f.pooled_TEV for f in found]), pooled_GEV, computed_in=dtype)
    table_grad = assemble(name, shape, ranks, [f.table_grad_nv for f in found])
    assert_agrees(table_grad, table_grad_NV, computed_in=dtype)


# --- Shards and names -------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 300), ranks=st.integers(1, 40))
def test_number_wise_owners_are_the_shards(rows: int, ranks: int) -> None:
    """Consecutive, nearly even, without gaps; and the arithmetic that finds an owner agrees, more ranks than rows
    included."""
    shape = TableShape(num_rows=rows, value_dim=1)
    partition = PARTITIONS[PartitionName.NUMBER_WISE](shape, Channel(FakeGroup(ranks)))  # type: ignore[arg-type]
    parts = [partition.shard(rank).rows for rank in range(ranks)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    owners = partition._owner(torch.arange(rows, dtype=torch.int32))  # type: ignore[attr-defined]
    assert owners.tolist() == [rank for rank, part in enumerate(parts) for _ in part]


def test_owners_of_a_table_beyond_int32_products() -> None:
    shape = TableShape(num_rows=2**31 - 1, value_dim=1)
    partition = PARTITIONS[PartitionName.NUMBER_WISE](shape, Channel(FakeGroup(256)))  # type: ignore[arg-type]
    rows = torch.tensor([0, partition.shard(100).rows.start, 2**31 - 2], dtype=torch.int32)
    assert partition._owner(rows).tolist() == [0, 100, 255]  # type: ignore[attr-defined]


def test_registry_names_every_partition() -> None:
    assert set(PARTITIONS) == set(PartitionName) - {PartitionName.AUTO}
    assert set(PARTITIONS) == {name for name, _ in SPLITS}, "every partition is tested"

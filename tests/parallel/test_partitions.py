"""Every partition equals the unsplit table, in outputs and in every gradient, and sends what the planner counts.

It does so in both of its operations, the lookup and the inner products. To test a new partition, add it to
``SPLITS``, and what it sends to ``predicted_bytes``.
"""

# Letters: N rows of the table, V value dimension, n and v one rank's share of them, T tokens of a rank, G of all,
#          K picks per token, E blocks, h score cores, P ranks.

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    dimension_wise_product_bytes,
    number_wise_bytes,
    number_wise_product_bytes,
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
class Case(ABC):
    """One operation by all ranks of a group, with all that they hold."""

    shape: TableShape
    tokens: list[int]
    table_NV: Tensor
    rows_GK: Tensor

    def of_rank(self, whole: Tensor, rank: int) -> Tensor:
        """The tokens of ``rank``."""
        return whole.split(self.tokens)[rank]

    def rows(self, rank: int) -> Tensor:
        """int32 [T, K]."""
        return self.of_rank(self.rows_GK, rank).int()

    @property
    @abstractmethod
    def input_G(self) -> Tensor:
        """[G, ...], what the table is met with, and what a gradient is due to."""

    @property
    @abstractmethod
    def cotangent_G(self) -> Tensor:
        """[G, ...], the gradient of the output."""

    @abstractmethod
    def run(self, partition: ValuePartition, weight_nv: Tensor, input_T: Tensor, rank: int) -> Tensor:
        """The operation, collectively; ``input_T`` are this rank's tokens of ``input_G``."""

    @abstractmethod
    def definition(self, table_NV: Tensor, input_G: Tensor) -> Tensor:
        """What it should be, on the whole table."""

    @property
    def output_type(self) -> torch.dtype:
        return self.table_NV.dtype

    @abstractmethod
    def lookup_shape(self, rank: int) -> LookupShape:
        """The planner's view."""


@dataclass(frozen=True)
class Lookup(Case):
    """Rows pooled by block with the scores of each core."""

    blocks_GK: Tensor
    scores_GhK: Tensor
    cotangent_GEV: Tensor

    @property
    def input_G(self) -> Tensor:
        return self.scores_GhK

    @property
    def cotangent_G(self) -> Tensor:
        return self.cotangent_GEV

    def run(self, partition: ValuePartition, weight_nv: Tensor, input_T: Tensor, rank: int) -> Tensor:
        blocks_TK = self.of_rank(self.blocks_GK, rank).to(torch.uint8)
        scores_hTK = input_T.transpose(0, 1).contiguous()
        return partition(weight_nv, Picks(self.rows(rank), blocks_TK, scores_hTK), self.tokens)

    def definition(self, table_NV: Tensor, input_G: Tensor) -> Tensor:
        scores_hGK = input_G.transpose(0, 1)
        return reference_pooling(table_NV, self.rows_GK, self.blocks_GK, scores_hGK, num_blocks=self.shape.blocks)

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
class Products(Case):
    """Inner products of rows with the vector of their token."""

    vectors_GV: Tensor
    cotangent_GK: Tensor

    @property
    def input_G(self) -> Tensor:
        return self.vectors_GV

    @property
    def cotangent_G(self) -> Tensor:
        return self.cotangent_GK

    @property
    def output_type(self) -> torch.dtype:
        return torch.float32

    def run(self, partition: ValuePartition, weight_nv: Tensor, input_T: Tensor, rank: int) -> Tensor:
        return partition.inner_products(weight_nv, self.rows(rank), input_T, self.tokens)

    def definition(self, table_NV: Tensor, input_G: Tensor) -> Tensor:
        return (table_NV[self.rows_GK] * input_G.unsqueeze(1)).sum(dim=2)

    def lookup_shape(self, rank: int) -> LookupShape:
        return LookupShape(
            tokens=self.tokens[rank],
            picks=self.rows_GK.shape[1],
            value_dim=0,
            pre_value_dim=self.shape.value_dim,
            element_bytes=self.table_NV.element_size(),
        )


MakeCase = Callable[..., Case]


@dataclass(frozen=True)
class Found:
    """What one rank computes."""

    output_T: Tensor
    table_grad_nv: Tensor
    input_grad_T: Tensor
    traffic: Traffic


def make_lookup(
    shape: TableShape, tokens: list[int], dtype: torch.dtype, candidates: Tensor, picks: int = NUM_PICKS
) -> Lookup:
    """Random everything; rows are drawn from ``candidates``, so few of them repeat in a token and across ranks."""
    total = sum(tokens)
    return Lookup(
        shape=shape,
        tokens=tokens,
        table_NV=torch.randn(shape.num_rows, shape.value_dim).to(dtype),
        rows_GK=candidates[torch.randint(len(candidates), (total, picks))],
        blocks_GK=torch.randint(shape.blocks, (total, picks)),
        scores_GhK=torch.randn(total, shape.cores, picks).to(dtype),
        cotangent_GEV=torch.randn(total, shape.blocks, shape.value_dim).to(dtype),
    )


def make_products(
    shape: TableShape, tokens: list[int], dtype: torch.dtype, candidates: Tensor, picks: int = NUM_PICKS
) -> Products:
    """As ``make_lookup``. Blocks and cores of ``shape`` play no part."""
    total = sum(tokens)
    return Products(
        shape=shape,
        tokens=tokens,
        table_NV=torch.randn(shape.num_rows, shape.value_dim).to(dtype),
        rows_GK=candidates[torch.randint(len(candidates), (total, picks))],
        vectors_GV=torch.randn(total, shape.value_dim).to(dtype),
        cotangent_GK=torch.randn(total, picks),
    )


OPERATIONS = pytest.mark.parametrize("make", [make_lookup, make_products], ids=["lookup", "products"])


def shapes_of(make: MakeCase) -> list[TableShape]:
    """Every combination of E and h that the operation heeds."""
    pooled = itertools.product([1, 4], [1, 2]) if make is make_lookup else [(1, 1)]
    return [TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM, blocks=E, cores=h) for E, h in pooled]


def make_cases(make: MakeCase, ranks: int) -> list[Case]:
    """Every combination of E, h, type, ragged, equal or no tokens, any rows or those of one or two owners."""
    return [
        make(shape, tokens, dtype, candidates)
        for shape, dtype, tokens, candidates in itertools.product(
            shapes_of(make),
            DTYPES,
            [RAGGED[ranks], [3] * ranks, [0] * ranks],
            [SOME_ROWS, torch.tensor([NUM_ROWS - 1]), torch.tensor([0, 7])],
        )
        if sum(tokens) or candidates is SOME_ROWS
    ]


def build(name: PartitionName, shape: TableShape) -> ValuePartition:
    return PARTITIONS[name](shape, Channel(dist.group.WORLD))


def compute(name: PartitionName, case: Case) -> Found:
    """On one of the ranks: forward and backward with this rank's shard and tokens."""
    rank = dist.get_rank()
    partition = build(name, case.shape)
    weight_nv = cut(case.table_NV, partition.shard(rank)).clone().requires_grad_()
    input_T = case.of_rank(case.input_G, rank).clone().requires_grad_()
    output_T = case.run(partition, weight_nv, input_T, rank)
    output_T.backward(case.of_rank(case.cotangent_G, rank))
    assert output_T.dtype == case.output_type
    assert weight_nv.grad is not None and input_T.grad is not None
    return Found(output_T.detach(), weight_nv.grad, input_T.grad, partition.channel.traffic)


def compute_all(name: PartitionName, cases: Sequence[Case]) -> list[Found]:
    return [compute(name, case) for case in cases]


def run_cases(name: PartitionName, ranks: int, cases: Sequence[Case]) -> list[tuple[Case, list[Found]]]:
    """All cases on the same forked ranks: each case with what the ranks found, in their order."""
    by_rank = run_distributed(ranks, compute_all, name, cases)
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
    """The oracle, in float64 on the whole table: output, gradients of table [N, V] and input."""
    table_NV = case.table_NV.double().requires_grad_()
    input_G = case.input_G.double().requires_grad_()
    output_G = case.definition(table_NV, input_G)
    if not sum(case.tokens):
        return output_G, torch.zeros_like(table_NV), torch.zeros_like(input_G)
    output_G.backward(case.cotangent_G.double())
    assert table_NV.grad is not None and input_G.grad is not None
    return output_G.detach(), table_NV.grad, input_G.grad


def assert_equals_unsplit(name: PartitionName, case: Case, found: Sequence[Found]) -> None:
    dtype = case.table_NV.dtype
    output_G, table_grad_NV, input_grad_G = unsplit(case)
    assert_agrees(torch.cat([f.output_T for f in found]), output_G, computed_in=case.output_type)
    table_grad = assemble(name, case.shape, len(found), [f.table_grad_nv for f in found])
    assert_agrees(table_grad, table_grad_NV, computed_in=dtype)
    assert_agrees(torch.cat([f.input_grad_T for f in found]), input_grad_G, computed_in=dtype)


@OPERATIONS
@pytest.mark.parametrize(("name", "ranks"), SPLITS)
def test_equals_the_unsplit_table(name: PartitionName, ranks: int, make: MakeCase) -> None:
    for case, found in run_cases(name, ranks, make_cases(make, ranks)):
        assert_equals_unsplit(name, case, found)


@OPERATIONS
@pytest.mark.parametrize(("name", "ranks"), [split for split in SPLITS if split[1] == 4])
def test_the_same_bits_twice(name: PartitionName, ranks: int, make: MakeCase) -> None:
    case = make(TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM), RAGGED[ranks], torch.float32, SOME_ROWS)
    (_, first), (_, second) = run_cases(name, ranks, [case, case])
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.output_T, other.output_T)
        assert torch.equal(one.table_grad_nv, other.table_grad_nv)
        assert torch.equal(one.input_grad_T, other.input_grad_T)


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
        input_T = case.of_rank(case.input_G, rank).clone().requires_grad_()
        output_T = case.run(partition, weight_nv, input_T, rank)
        cotangent = case.of_rank(case.cotangent_G, rank)
        if micro_batch:
            with largest:
                output_T.backward(cotangent)
        else:
            output_T.backward(cotangent)
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


@OPERATIONS
@pytest.mark.usefixtures("dispatch_modes")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "ranks"), [split for split in SPLITS if split[1] != 2])
def test_gradients_land_in_main_grad(name: PartitionName, ranks: int, dtype: torch.dtype, make: MakeCase) -> None:
    shape = TableShape(num_rows=509, value_dim=VALUE_DIM, blocks=4, cores=2)
    case = make(shape, RAGGED[ranks], dtype, torch.tensor([0, 100, 200, 300, 508]))
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
    pooled = isinstance(case, Lookup)
    match name:
        case PartitionName.NUMBER_WISE:
            counts = number_wise_counts(case, ranks)
            count_rows = number_wise_bytes if pooled else number_wise_product_bytes
            return [count_rows(shape, ranks, *count) for shape, count in zip(shapes, counts, strict=True)]
        case PartitionName.DIMENSION_WISE:
            count_columns = dimension_wise_bytes if pooled else dimension_wise_product_bytes
            return [count_columns(shape, ranks) for shape in shapes]
        case _:
            return [WireBytes() for _ in shapes]


def assert_bytes(found: Sequence[Found], predicted: Sequence[WireBytes]) -> None:
    for one, wire in zip(found, predicted, strict=True):
        assert one.traffic.forward_bytes == wire.forward_bytes
        assert one.traffic.backward_bytes == wire.backward_bytes


@OPERATIONS
@pytest.mark.parametrize(("name", "ranks"), SPLITS)
def test_counted_bytes_equal_the_planners(name: PartitionName, ranks: int, make: MakeCase) -> None:
    cases = [make(shape, [3] * ranks, dtype, SOME_ROWS) for shape, dtype in itertools.product(shapes_of(make), DTYPES)]
    for case, found in run_cases(name, ranks, cases):
        assert_bytes(found, predicted_bytes(name, case, ranks))


@OPERATIONS
@pytest.mark.parametrize(("name", "ranks"), [split for split in SPLITS if split[1] > 2])
def test_counted_bytes_with_ragged_tokens(name: PartitionName, ranks: int, make: MakeCase) -> None:
    """Number-wise to the byte on each rank. Dimension-wise assumes equal ranks, and is right for their sum."""
    shape = TableShape(num_rows=NUM_ROWS, value_dim=VALUE_DIM, blocks=4, cores=2)
    case = make(shape, RAGGED[ranks], torch.float32, SOME_ROWS)
    ((_, found),) = run_cases(name, ranks, [case])
    predicted = predicted_bytes(name, case, ranks)
    if name is PartitionName.NUMBER_WISE:
        assert_bytes(found, predicted)
    assert sum(f.traffic.forward_bytes for f in found) == sum(wire.forward_bytes for wire in predicted)
    assert sum(f.traffic.backward_bytes for f in found) == sum(wire.backward_bytes for wire in predicted)


BALANCED_ROWS = 12
"""Each token picks every row once: as many of each owner."""


def balanced(make: MakeCase, shape: TableShape, ranks: int) -> Case:
    case = make(shape, [2] * ranks, torch.bfloat16, SOME_ROWS, picks=BALANCED_ROWS)
    case.rows_GK.copy_(torch.arange(BALANCED_ROWS).roll(5))
    return case


@pytest.mark.parametrize(("name", "ranks"), [split for split in SPLITS if split[1] in (2, 4)])
def test_expected_bytes_are_those_of_balanced_picks(name: PartitionName, ranks: int) -> None:
    """Each token picks as many rows of each owner: then the expectation, which a plan is made from, is exact."""
    shape = TableShape(num_rows=BALANCED_ROWS, value_dim=VALUE_DIM, blocks=4, cores=2)
    case = balanced(make_lookup, shape, ranks)
    ((_, found),) = run_cases(name, ranks, [case])
    assert_bytes(found, [partition_bytes(name, case.lookup_shape(rank), ranks) for rank in range(ranks)])


@settings(max_examples=12, deadline=None)
@given(
    make=st.sampled_from([make_lookup, make_products]),
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
    assert_bytes(found, predicted_bytes(name, case, ranks))
    assert_equals_unsplit(name, case, found)


# --- Both operations together -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighted:
    """A lookup whose scores are multiplied by inner products with a second table, as UltraMemV2 does."""

    lookup: Lookup
    products: Products

    def score(self, products_TK: Tensor, scores_ThK: Tensor) -> Tensor:
        return (scores_ThK * products_TK.unsqueeze(1)).to(scores_ThK.dtype)


def compute_weighted(name: PartitionName, case: Weighted) -> tuple[Found, Found]:
    """Both tables talk over one channel. The outputs are the pooled rows and the products."""
    rank, channel = dist.get_rank(), Channel(dist.group.WORLD)
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
    """Balanced picks, and a pre-value twice as wide as a value."""
    lookup = balanced(make_lookup, TableShape(num_rows=BALANCED_ROWS, value_dim=VALUE_DIM, cores=2), ranks)
    products = balanced(make_products, TableShape(num_rows=BALANCED_ROWS, value_dim=2 * VALUE_DIM), ranks)
    assert isinstance(lookup, Lookup) and isinstance(products, Products)
    return Weighted(
        replace(
            lookup,
            table_NV=lookup.table_NV.to(dtype),
            scores_GhK=lookup.scores_GhK.to(dtype),
            cotangent_GEV=lookup.cotangent_GEV.to(dtype),
        ),
        replace(products, table_NV=products.table_NV.to(dtype), vectors_GV=products.vectors_GV.to(dtype)),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "ranks"), [split for split in SPLITS if split[1] in (1, 2, 4)])
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
    shape = replace(case.lookup.lookup_shape(0), pre_value_dim=case.products.shape.value_dim)
    assert_bytes(looked_up, [partition_bytes(name, shape, ranks)] * ranks)


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

"""Every partition on one rank equals the unsplit lookup, in outputs and in every gradient."""

# Letters: N rows of the table, V value dimension, T tokens, K picks per token, E blocks, h score cores.

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.parallel.channel import Channel
from ultramem_megatron.parallel.host_numbers import SizesUnderWay
from ultramem_megatron.parallel.partition.base import Picks, TableShape, ValuePartition
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.parallel.underway import Underway
from ultramem_megatron.testing.partition_runs import build
from ultramem_megatron.testing.reference_layer import reference_pooling
from ultramem_megatron.testing.tolerances import assert_agrees

pytestmark = pytest.mark.gpu

SHAPE = TableShape(num_rows=509, value_dim=48, blocks=4, cores=2)
DTYPES = [torch.float32, torch.bfloat16]
NUM_PICKS = 8


@dataclass(frozen=True)
class Case:
    """One lookup, on the CPU."""

    table_NV: Tensor
    rows_TK: Tensor
    blocks_TK: Tensor
    scores_hTK: Tensor
    cotangent_TEV: Tensor

    def oracle(self) -> tuple[Tensor, Tensor, Tensor]:
        """In float64: pooled [T, E, V], gradients of table [N, V] and scores [h, T, K]."""
        table, scores = self.table_NV.double().requires_grad_(), self.scores_hTK.double().requires_grad_()
        pooled = reference_pooling(table, self.rows_TK, self.blocks_TK, scores, num_blocks=SHAPE.blocks)
        pooled.backward(self.cotangent_TEV.double())
        assert table.grad is not None and scores.grad is not None
        return pooled.detach(), table.grad, scores.grad

    def picks(self, device: torch.device) -> Picks:
        scores = self.scores_hTK.to(device, copy=True).requires_grad_()
        return Picks(self.rows_TK.int().to(device), self.blocks_TK.to(device, torch.uint8), scores)


def make_case(dtype: torch.dtype, tokens: int = 37) -> Case:
    """Half of the picks fall on four rows, so that rows repeat within a token and many adds meet in one row."""
    rows = torch.randint(SHAPE.num_rows, (tokens, NUM_PICKS))
    rows[:, ::2] %= 4
    return Case(
        table_NV=torch.randn(SHAPE.num_rows, SHAPE.value_dim).to(dtype),
        rows_TK=rows,
        blocks_TK=torch.randint(SHAPE.blocks, (tokens, NUM_PICKS)),
        scores_hTK=torch.randn(SHAPE.cores, tokens, NUM_PICKS).to(dtype),
        cotangent_TEV=torch.randn(tokens, SHAPE.blocks, SHAPE.value_dim).to(dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PARTITIONS)
def test_equals_the_unsplit_lookup(device: torch.device, name: PartitionName, dtype: torch.dtype) -> None:
    case = make_case(dtype)
    partition = build(name, SHAPE)
    table = case.table_NV.to(device, copy=True).requires_grad_()
    picks = case.picks(device)
    pooled = partition(table, picks, [len(case.rows_TK)])
    pooled.backward(case.cotangent_TEV.to(device))
    assert table.grad is not None and picks.scores_hTK.grad is not None
    for found, expected in zip((pooled, table.grad, picks.scores_hTK.grad), case.oracle(), strict=True):
        assert found.device == device
        assert_agrees(found, expected, computed_in=dtype, summed_terms=SHAPE.value_dim)


@pytest.mark.parametrize("name", PARTITIONS)
def test_gradients_land_in_main_grad(device: torch.device, name: PartitionName) -> None:
    """Two micro-batches add up in fp32, and the parameter's own gradient owns no memory."""
    case = make_case(torch.bfloat16)
    partition = build(name, SHAPE)
    table = torch.nn.Parameter(case.table_NV.to(device, copy=True))
    table.main_grad = torch.zeros(table.shape, device=device)  # type: ignore[attr-defined]
    for _ in range(2):
        partition(table, case.picks(device), [len(case.rows_TK)]).backward(case.cotangent_TEV.to(device))
        assert table.grad is not None and table.grad.untyped_storage().size() == 0
        table.grad = None
    assert_agrees(
        table.main_grad,  # type: ignore[attr-defined]
        2 * case.oracle()[1],
        computed_in=torch.bfloat16,
        summed_terms=SHAPE.value_dim,
    )


@pytest.mark.parametrize("name", PARTITIONS)
def test_a_rank_may_have_no_tokens(device: torch.device, name: PartitionName) -> None:
    case = make_case(torch.float32, tokens=0)
    partition = build(name, SHAPE)
    table = case.table_NV.to(device, copy=True).requires_grad_()
    pooled = partition(table, case.picks(device), [0])
    assert pooled.shape == (0, SHAPE.blocks, SHAPE.value_dim)
    pooled.sum().backward()
    assert table.grad is not None and table.grad.count_nonzero() == 0


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """What makes the host wait for the device meanwhile, collectives apart: to read from it, or for an event."""
    waits: list[str] = []
    wait_for_event = torch.cuda.Event.synchronize

    def noted(event: torch.cuda.Event) -> None:
        waits.append("event")
        wait_for_event(event)

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    torch.cuda.Event.synchronize = noted  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield waits
    finally:
        torch.cuda.Event.synchronize = wait_for_event  # type: ignore[method-assign]
        torch.cuda.set_sync_debug_mode("default")
    waits += [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]


def count_waits(partition: ValuePartition, table: torch.nn.Parameter, case: Case) -> tuple[int, int, int]:
    """In a lookup, in inner products, and in the backward pass of both."""
    device, tokens = table.device, [len(case.rows_TK)]
    picks, cotangent = case.picks(device), case.cotangent_TEV.to(device)
    vectors = torch.randn(tokens[0], SHAPE.value_dim, device=device, dtype=table.dtype, requires_grad=True)
    ones = torch.ones(case.rows_TK.shape, device=device)
    with counted_waits() as looked_up:
        pooled = partition(table, picks, tokens)
    with counted_waits() as multiplied:
        products = partition.inner_products(table, picks.rows_TK, vectors, tokens)
    with counted_waits() as backward:
        torch.autograd.backward([pooled, products], [cotangent, ones])
    table.grad = None
    return len(looked_up), len(multiplied), len(backward)


@pytest.mark.parametrize("name", PARTITIONS)
def test_an_operation_waits_for_the_device_once_at_most(device: torch.device, name: PartitionName) -> None:
    """Only to learn sizes; never backward."""
    case = make_case(torch.bfloat16)
    partition = build(name, SHAPE)
    table = torch.nn.Parameter(case.table_NV.to(device, copy=True))
    table.main_grad = torch.zeros(table.shape, device=device)  # type: ignore[attr-defined]
    allowed = 0 if name in (PartitionName.REPLICATED, PartitionName.DIMENSION_WISE) else 1
    count_waits(partition, table, case)  # the first time also makes what lives on
    assert count_waits(partition, table, case) == (allowed, allowed, 0)


@pytest.fixture
def fixed_order() -> Iterator[None]:
    """Sums of rows in one order: a GPU's own adds in any, so that bits could not be compared."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("fixed_order")
@pytest.mark.parametrize("name", PARTITIONS)
def test_a_lookup_beside_other_work_gives_the_same_bits(device: torch.device, name: PartitionName) -> None:
    """Left where it waits while the main stream is kept busy and memory changes hands, forward and backward."""
    case = make_case(torch.float32, tokens=1000)
    partition = build(name, SHAPE)
    dense = torch.randn(2**22 if device.type == "cuda" else 2**12, device=device, requires_grad=True)

    def run(*, beside: bool) -> list[Tensor]:
        table, picks = case.table_NV.to(device, copy=True).requires_grad_(), case.picks(device)
        lookup = Underway(partition.look_up(table, picks, [len(case.rows_TK)]))
        hidden = dense
        while beside and not lookup.is_done:
            for _ in range(8):
                hidden = torch.sin(hidden)
            lookup.advance()
        pooled = lookup.finish()
        torch.autograd.backward([pooled, hidden.sum()], [case.cotangent_TEV.to(device), torch.ones((), device=device)])
        assert table.grad is not None and picks.scores_hTK.grad is not None
        return [pooled.detach(), picks.scores_hTK.grad, table.grad]

    expected = run(beside=False)
    for _ in range(3):
        for found, wanted in zip(run(beside=True), expected, strict=True):
            assert torch.equal(found, wanted)


def test_waiting_for_sizes_leaves_the_device_busy(device: torch.device) -> None:
    """The host waits for the copy of the sizes alone, not for what the main stream was given since."""
    sizes = SizesUnderWay(torch.tensor([5], device=device), Channel(dist.group.WORLD))
    torch.cuda._sleep(2_000_000_000)  # about a second
    behind = torch.cuda.current_stream().record_event()
    assert sizes.finish() == ([5], [5])
    assert not behind.query(), "the main stream still works"
    behind.synchronize()

"""What a rank does on its own: copies, rows read and added to at random, products of matrices, operations on nothing.

All ranks do it at the same time: on a GPU each has its own, processes of one machine share its cores and memory.
"""

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.measuring.clock import Clock
from ultramem_megatron.measuring.picks import draw_rows
from ultramem_megatron.measuring.repeat import Measured, measure_in_turns
from ultramem_megatron.parallel.partition.pooling import pool_rows
from ultramem_megatron.parallel.partition.rows import add_rows, take_rows
from ultramem_megatron.planning.calibration.schedule import MOST_ROWS, Schedule
from ultramem_megatron.planning.validation.results import Skew

ELEMENT_BYTES = 4
PICKS = 32
"""Of each token, in a sum over picks."""
SMALL_OPERATIONS, SMALL_ELEMENTS = 13, 64
"""Kernels of a round of small operations, forward and backward."""


def measure_stream(clock: Clock, schedule: Schedule) -> Measured:
    """Seconds of reading ``batch_bytes`` and writing as many to what the allocator gives, as operations of a lookup."""
    source = torch.zeros(schedule.batch_bytes // ELEMENT_BYTES, device=clock.device)
    return measure_in_turns({"scale": lambda: source * 2}, clock, schedule)["scale"]


def measure_sort(clock: Clock, schedule: Schedule) -> float:
    """Seconds for each of ``MOST_ROWS`` row numbers that are sorted with their places."""
    rows = draw_rows(MOST_ROWS, MOST_ROWS, Skew.UNIFORM, torch.Generator().manual_seed(dist.get_rank()))
    rows = rows.to(clock.device)
    return measure_in_turns({"sort": lambda: torch.sort(rows)}, clock, schedule)["sort"].median / MOST_ROWS


def measure_small_operation(clock: Clock, schedule: Schedule) -> float:
    """Seconds from one operation to the next when they do nothing: as in training, they are recorded by autograd and
    run backward too."""
    rows = torch.arange(SMALL_ELEMENTS, device=clock.device)
    values = torch.zeros(SMALL_ELEMENTS, device=clock.device, requires_grad=True)

    def some() -> None:
        # of the kinds that a lookup is full of, each with a result of its own; forward 7, and backward 6
        places = torch.sort(rows)[1].cumsum(0) // SMALL_ELEMENTS
        found = values.index_select(0, places) * 2
        added = torch.zeros_like(values).index_add(0, rows, found)
        torch.autograd.grad(added, values, added)

    return measure_in_turns({"some": some}, clock, schedule)["some"].median / SMALL_OPERATIONS


def measure_new_memory(num_bytes: int, clock: Clock, schedule: Schedule) -> float:
    """Seconds that writing ``num_bytes`` takes longer where the system must give the memory, and each page is touched
    for the first time, than in memory that is in use. Not negative."""
    source = torch.zeros(num_bytes // ELEMENT_BYTES, device=clock.device)
    in_use = torch.zeros_like(source)
    works = {"new": lambda: source * 2, "in use": lambda: torch.mul(source, 2, out=in_use)}
    found = measure_in_turns(works, clock, schedule)
    return max(0.0, found["new"].median - found["in use"].median)


def measure_rows(row_bytes: int, clock: Clock, schedule: Schedule) -> dict[str, float]:
    """Seconds for each row of ``row_bytes`` that is read (``gather``), added to (``scatter``), summed by token
    (``pool_forward``) or given its gradient (``pool_backward``); the first two also with picks that follow Zipf's law.
    """
    num_rows = schedule.table_bytes // row_bytes
    count = max(1, min(MOST_ROWS, schedule.batch_bytes // row_bytes))
    table_nv = torch.zeros(num_rows, row_bytes // ELEMENT_BYTES, device=clock.device)
    batch = torch.zeros(count, row_bytes // ELEMENT_BYTES, device=clock.device)
    generator = torch.Generator().manual_seed(dist.get_rank())
    works: dict[str, Callable[[], object]] = {}
    for skew, ending in ((Skew.UNIFORM, ""), (Skew.ZIPF, ".zipf")):
        rows = draw_rows(count, num_rows, skew, generator).to(clock.device)
        works[f"gather{ending}"] = functools.partial(take_rows, table_nv, rows)
        works[f"scatter{ending}"] = functools.partial(add_rows, table_nv, rows, batch)
    rows = draw_rows(count, num_rows, Skew.UNIFORM, generator).to(clock.device)
    works |= _pool(table_nv, rows.view(-1, min(PICKS, count)))
    return {name: measured.median / count for name, measured in measure_in_turns(works, clock, schedule).items()}


def _pool(table_nv: Tensor, rows_TK: Tensor) -> dict[str, Callable[[], object]]:
    """The weighted sum over a token's picks, and its gradients; that of the table as in training."""
    table = torch.nn.Parameter(table_nv)
    table.main_grad = torch.zeros_like(table_nv)  # type: ignore[attr-defined]
    scores_hTK = torch.ones(1, *rows_TK.shape, device=table_nv.device, requires_grad=True)
    blocks_TK = torch.zeros_like(rows_TK, dtype=torch.uint8)
    width = table_nv.shape[1]
    cotangent_TEv = torch.ones(rows_TK.shape[0], 1, width, device=table_nv.device)
    pooled: list[Tensor] = []

    def forward() -> None:
        pooled[:] = [pool_rows(table, rows_TK, blocks_TK, scores_hTK, 1, range(width), width)]

    def backward() -> None:
        torch.autograd.grad(pooled[0], (table, scores_hTK), cotangent_TEv, retain_graph=True)

    return {"pool_forward": forward, "pool_backward": backward}


def measure_products(side: int, clock: Clock, schedule: Schedule) -> dict[str, float]:
    """Seconds of a product of two square matrices, ``bf16`` and ``fp32``."""
    works = {name: _product(side, dtype, clock.device) for name, dtype in _TYPES.items()}
    return {name: measured.median for name, measured in measure_in_turns(works, clock, schedule).items()}


_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def _product(side: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.matmul(left, right, out=out)


def measure_overlap(side: int, clock: Clock, schedule: Schedule, group: dist.ProcessGroup) -> dict[str, float]:
    """Seconds of a series of ``products``, of an all-gather (``collective``), and of ``both`` at once."""
    multiply = _product(side, torch.float32, clock.device)
    share = torch.zeros(schedule.batch_bytes // ELEMENT_BYTES // group.size(), device=clock.device)
    whole = share.repeat(group.size())

    def gather(later: bool) -> "dist.Work | None":
        return dist.all_gather_into_tensor(whole, share, group=group, async_op=later)

    def products() -> None:
        for _ in range(count):
            multiply()

    def both() -> None:
        pending = gather(True)
        products()
        assert pending is not None
        pending.wait()

    # as many products as take about as long as the collective, so that either could hide the other
    first = measure_in_turns({"product": multiply, "collective": lambda: gather(False)}, clock, schedule)
    count = max(1, round(first["collective"].median / first["product"].median))
    works = {"products": products, "collective": lambda: gather(False), "both": both}
    return {name: measured.median for name, measured in measure_in_turns(works, clock, schedule).items()}

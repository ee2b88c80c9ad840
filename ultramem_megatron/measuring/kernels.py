"""What a rank does on its own: copies, rows read and added to at random, products of matrices, operations on nothing.

All ranks do it at the same time: on a GPU each has its own, processes of one machine share its cores and memory.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.measuring.clock import Clock
from ultramem_megatron.measuring.picks import draw_rows
from ultramem_megatron.measuring.repeat import Measured, measure_in_turns
from ultramem_megatron.planning.calibration.schedule import MOST_ROWS, Schedule
from ultramem_megatron.planning.validation.results import Skew

ELEMENT_BYTES = 4
SMALL_ROUNDS, SMALL_OPERATIONS, SMALL_ELEMENTS = 25, 4, 64
"""Rounds of operations are timed together: one of them is shorter than what a barrier leaves of a common start."""


def measure_copy(clock: Clock, schedule: Schedule) -> Measured:
    """Seconds of copying ``table_bytes / 2``, so of reading and writing ``table_bytes`` in all."""
    source = torch.zeros(schedule.table_bytes // 2, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    return measure_in_turns({"copy": lambda: target.copy_(source)}, clock, schedule)["copy"]


def measure_small_operation(clock: Clock, schedule: Schedule) -> float:
    """Seconds from one operation to the next when they do nothing."""
    rows = torch.arange(SMALL_ELEMENTS, device=clock.device)
    values = torch.zeros(SMALL_ELEMENTS, device=clock.device)

    def many() -> None:
        # of the kinds that a lookup is full of, each with a result of its own
        for _ in range(SMALL_ROUNDS):
            values.index_select(0, rows)
            rows.cumsum(0)
            torch.ne(rows, 0)
            values.to(torch.float64)

    return measure_in_turns({"many": many}, clock, schedule)["many"].median / SMALL_ROUNDS / SMALL_OPERATIONS


def measure_rows(row_bytes: int, clock: Clock, schedule: Schedule) -> dict[str, float]:
    """Seconds for each row of ``row_bytes``: ``gather``, ``scatter``, and both with picks that follow Zipf's law."""
    num_rows = schedule.table_bytes // row_bytes
    count = max(1, min(MOST_ROWS, schedule.batch_bytes // row_bytes))
    table_nv = torch.zeros(num_rows, row_bytes // ELEMENT_BYTES, device=clock.device)
    batch = torch.empty(count, row_bytes // ELEMENT_BYTES, device=clock.device)
    generator = torch.Generator().manual_seed(dist.get_rank())
    works: dict[str, Callable[[], object]] = {}
    for skew, ending in ((Skew.UNIFORM, ""), (Skew.ZIPF, ".zipf")):
        rows = draw_rows(count, num_rows, skew, generator).to(clock.device)
        works[f"gather{ending}"] = _gather(table_nv, rows, batch)
        works[f"scatter{ending}"] = _scatter(table_nv, rows, torch.zeros_like(batch))
    return {name: measured.median / count for name, measured in measure_in_turns(works, clock, schedule).items()}


def _gather(table_nv: Tensor, rows: Tensor, batch: Tensor) -> Callable[[], object]:
    return lambda: torch.index_select(table_nv, 0, rows, out=batch)


def _scatter(table_nv: Tensor, rows: Tensor, batch: Tensor) -> Callable[[], object]:
    return lambda: table_nv.index_add_(0, rows, batch)


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

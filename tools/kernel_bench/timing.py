"""Times on a device: medians of repeats with cold caches, and the rates that the device itself reaches."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_megatron.measuring.fingerprint import cpu_facts

UNTIMED_REPEATS = 3
COPY_BYTES = {"cuda": 2**31, "cpu": 2**24}
FLUSH_BYTES = {"cuda": 2**28, "cpu": 2**22}
"""More than the L2 cache of any GPU."""


def processor() -> str:
    """Of this machine, and its widest vectors, which matter most to what is measured on it."""
    model, facts = platform.processor() or platform.machine(), cpu_facts()
    if facts:
        model = f"{facts.get('model name', model)} (family {facts.get('cpu family')}, model {facts.get('model')})"
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


@dataclass(frozen=True)
class Times:
    """Seconds of one call."""

    median: float
    p90: float


@dataclass(frozen=True)
class Clock:
    """Measures on one device."""

    device: torch.device
    repeats: int

    def time(self, call: Callable[[], object], before: Callable[[], object] = lambda: None) -> Times:
        """Time ``call``; ``before`` runs ahead of each repeat, untimed, and so does a flush of the caches."""
        flush = torch.empty(FLUSH_BYTES[self.device.type], dtype=torch.uint8, device=self.device)
        seconds = []
        for _ in range(UNTIMED_REPEATS + self.repeats):
            before()
            flush.zero_()
            seconds.append(self._once(call))
        timed = sorted(seconds[UNTIMED_REPEATS:])
        return Times(statistics.median(timed), timed[min(len(timed) - 1, int(0.9 * len(timed)))])

    def _once(self, call: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    def copy_rate(self) -> float:
        """Bytes per second, read and written, of a large copy."""
        source = torch.zeros(COPY_BYTES[self.device.type] // 4, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.time(lambda: target.copy_(source)).median

    def gather_rate(self, table_NV: Tensor, rows: Tensor) -> float:
        """Bytes per second, read and written, of reading these rows and doing nothing with them."""
        flat = rows.reshape(-1)
        target = table_NV.new_empty(flat.shape[0], table_NV.shape[1])
        return 2 * target.nbytes / self.time(lambda: torch.index_select(table_NV, 0, flat, out=target)).median

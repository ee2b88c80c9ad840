"""Points in time on a device, and how several ranks agree on what something took."""

import itertools
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Clock:
    """Stamps of one device: of the host's clock on a CPU, events of the current stream on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stamp(self) -> "float | torch.cuda.Event":
        """Now."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, stamps: Sequence["float | torch.cuda.Event"]) -> list[float]:
        """Seconds from each stamp to the next; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        pairs = itertools.pairwise(stamps)
        return [b - a if isinstance(a, float) else a.elapsed_time(b) / 1000 for a, b in pairs]  # type: ignore[operator, arg-type]


def time_together(parts: Sequence[Callable[[], object]], clock: Clock, group: dist.ProcessGroup) -> list[float]:
    """Run ``parts`` one after the other, all ranks starting at once; seconds that each took here. Collective."""
    dist.barrier(group)
    stamps = [clock.stamp()]
    for part in parts:
        part()
        stamps.append(clock.stamp())
    return clock.between(stamps)


def slowest(seconds: Sequence[Sequence[float]], device: torch.device, group: dist.ProcessGroup) -> Tensor:
    """fp64 on the host, like ``seconds``: of each number the largest that a rank of ``group`` has. Collective."""
    joined = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(joined, op=dist.ReduceOp.MAX, group=group)
    return joined.cpu()

"""A rank's own work in a stretch of time: its length less the time in which the rank waits for others.

Ranks train in step, so a slow one makes every step of every rank longer; what tells it from the others is that it
does not wait. All waits go through few doors, the methods of torch's process groups and of what is under way
in them. While a stretch is measured they are wrapped, at other times they are as torch made them.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from ultramem_megatron.parallel.patching import Undo, put
from ultramem_megatron.parallel.timeline import recorded_event

_GROUP_DOORS = (
    "_allgather_base",
    "_end_coalescing",
    "_reduce_scatter_base",
    "all_gather_single",
    "all_gather_single_coalesced",
    "all_to_all_single",
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "allreduce",
    "allreduce_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "gather",
    "recv",
    "recv_anysource",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "scatter",
    "send",
)
"""Of ``dist.ProcessGroup``, in the names of torch 2.9 to 2.13. With nccl those that are not asynchronous hold up the
stream that they are called on, and nothing is waited for afterwards."""


class WorkMeter:
    """Measures one stretch after the other on this rank. A context manager, which leaves torch as it was."""

    def __init__(self, device: torch.device) -> None:
        """``device``: by its compute stream is measured, on a CPU by the thread that calls this."""
        self._clock: _Clock = _DeviceClock(device) if device.type == "cuda" else _HostClock()
        self._undo: list[Undo] = []
        self._waits: list[tuple[Any, Any]] = []
        self._begun: Any = None

    @property
    def is_measuring(self) -> bool:
        """Whether a stretch has begun."""
        return bool(self._undo)

    def begin(self) -> None:
        """Measure from here on; a stretch that was not ended is forgotten."""
        self._leave_doors()
        self._waits = []
        self._undo = [put(owner, name, self._timed(getattr(owner, name))) for owner, name in self._clock.doors()]
        self._begun = self._clock.now()

    def end(self) -> "Stretch":
        """Measure to here. The device is not waited for."""
        assert self.is_measuring, "end() without begin()"
        stretch = Stretch(self._clock, self._begun, self._clock.now(), self._waits)
        self._leave_doors()
        return stretch

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        clock, waits = self._clock, self._waits

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not clock.is_here():
                return call(*args, **kwargs)
            before = clock.now()
            try:
                return call(*args, **kwargs)
            finally:
                waits.append((before, clock.now()))

        return timed

    def _leave_doors(self) -> None:
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> "WorkMeter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave_doors()


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was measured."""

    _clock: "_Clock"
    _begun: Any
    _ended: Any
    _waits: Sequence[tuple[Any, Any]]

    def own_seconds(self) -> float:
        """Seconds of own work. Waits until the device is past the end of the stretch: ask a step later, and it is."""
        whole = self._clock.seconds(self._begun, self._ended)
        return max(0.0, whole - sum(self._clock.seconds(before, after) for before, after in self._waits))


class _Clock(ABC):
    """Marks in time, of any kind, and the seconds between two of them."""

    @abstractmethod
    def doors(self) -> Iterator[tuple[type, str]]:
        """Class and method of what waits for other ranks."""

    @abstractmethod
    def is_here(self) -> bool:
        """Whether what waits now holds the rank's work up, and not something that runs beside it."""

    @abstractmethod
    def now(self) -> Any:
        """A mark."""

    @abstractmethod
    def seconds(self, before: Any, after: Any) -> float:
        """From mark to mark."""


class _HostClock(_Clock):
    """Collectives of gloo run on threads of their own; the rank waits where it awaits them."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def doors(self) -> Iterator[tuple[type, str]]:
        yield dist.Work, "wait"

    def is_here(self) -> bool:
        return threading.get_ident() == self._thread  # a checkpoint may be on its way to the disk on another

    def now(self) -> float:
        return time.perf_counter()

    def seconds(self, before: float, after: float) -> float:
        return after - before


class _DeviceClock(_Clock):
    """Events on the compute stream, on which the device marks when it comes by: the host does not wait."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)

    def doors(self) -> Iterator[tuple[type, str]]:
        yield dist.Work, "wait"
        yield torch.cuda.Event, "synchronize"  # the host waits for sizes from others, and the stream runs dry
        for name in _GROUP_DOORS:
            if hasattr(dist.ProcessGroup, name):
                yield dist.ProcessGroup, name

    def is_here(self) -> bool:
        return torch.cuda.current_stream(self._stream.device) == self._stream

    def now(self) -> torch.cuda.Event:
        return recorded_event(self._stream)

    def seconds(self, before: torch.cuda.Event, after: torch.cuda.Event) -> float:
        after.synchronize()
        return before.elapsed_time(after) / 1000

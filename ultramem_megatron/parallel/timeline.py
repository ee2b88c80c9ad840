"""When a channel's collectives began, when they were waited for and when they were done.

``Timeline`` notes nothing: most steps have it. ``HostTimeline`` and ``DeviceTimeline`` take its place while
``tools/profile_step`` looks, and in the steps that a run reports (``message_meter.py``).
"""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import record_function


class Timeline:
    """Notes nothing."""

    def start(self, name: str, *, backward: bool) -> Any:
        """A collective is about to begin; the mark to give to the other methods."""
        return None

    def begun(self, mark: Any, work: dist.Work) -> None:
        """It has begun."""

    def wait(self, mark: Any, wait: Callable[[], object]) -> None:
        """Call ``wait``, which waits for the collective of ``mark``."""
        wait()

    def phase(self, name: str) -> AbstractContextManager[object]:
        """What is done here meanwhile, for the trace."""
        return contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """One collective, from its beginning to its end. Seconds, of any clock."""

    name: str
    backward: bool
    begun: float
    done: float
    waited_from: float
    """From here on nothing else was done on this rank, until ``waited_to``."""
    waited_to: float


@dataclass(frozen=True, slots=True)
class Overlap:
    """What became of the time of some collectives."""

    total_seconds: float
    exposed_seconds: float

    @property
    def hidden_fraction(self) -> float:
        """Share of the time during which other work was done; 0 when there was none to hide."""
        return 1 - self.exposed_seconds / self.total_seconds if self.total_seconds else 0.0


def overlap_of(crossings: Sequence[Crossing]) -> Overlap:
    """Of one rank's collectives: how long any was under way, and how long of that the rank waited for any of them.

    Those that run side by side count once; what a wait takes beyond the end, to wake up, is not communication.
    """
    under_way = _joined((one.begun, one.done) for one in crossings)
    waits = _joined((one.waited_from, one.waited_to) for one in crossings)
    exposed = [(max(a, c), min(b, d)) for a, b in under_way for c, d in waits if max(a, c) < min(b, d)]
    return Overlap(_length(under_way), _length(exposed))


Interval = tuple[float, float]


def _joined(intervals: Iterable[Interval]) -> list[Interval]:
    """The same stretches of time, none of which overlap."""
    joined: list[Interval] = []
    for start, stop in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _length(intervals: Iterable[Interval]) -> float:
    return sum(stop - start for start, stop in intervals)


class RecordingTimeline(Timeline, ABC):
    """Notes every collective."""

    @abstractmethod
    def take(self) -> list[Crossing]:
        """Those that were waited for since the last call."""

    def phase(self, name: str) -> AbstractContextManager[object]:
        return record_function(f"memory: {name}")


@dataclass(slots=True)
class _HostMark:
    name: str
    backward: bool
    begun: float
    tells: bool = True
    """Whether its end will be told."""
    done: float | None = None

    def finished(self, _: object) -> None:
        self.done = time.time()


class HostTimeline(RecordingTimeline):
    """By the clock of the host (Unix time, that of traces), where collectives run on threads: gloo.

    Of gloo's reduce-scatter torch does not tell when it is done: of that only the wait is noted, and nothing as hidden.
    """

    def __init__(self) -> None:
        self._crossings: list[Crossing] = []

    def start(self, name: str, *, backward: bool) -> _HostMark:
        return _HostMark(name, backward, time.time())

    def begun(self, mark: _HostMark, work: dist.Work) -> None:
        try:
            work.get_future().add_done_callback(mark.finished)
        except RuntimeError:  # "not implemented"
            mark.tells = False

    def wait(self, mark: _HostMark, wait: Callable[[], object]) -> None:
        waited_from = time.time()
        with record_function(f"memory: wait for {mark.name}"):
            wait()
        waited_to = time.time()
        self._crossings.append(
            Crossing(
                name=mark.name,
                backward=mark.backward,
                begun=mark.begun if mark.tells else waited_from,
                # the thread that notes the end may come late: it needs the interpreter
                done=min(mark.done or waited_to, waited_to),
                waited_from=waited_from,
                waited_to=waited_to,
            )
        )

    def take(self) -> list[Crossing]:
        taken, self._crossings = self._crossings, []
        return taken


@dataclass(slots=True)
class _DeviceMark:
    name: str
    backward: bool
    begun: torch.cuda.Event
    done: torch.cuda.Event | None = None


class DeviceTimeline(RecordingTimeline):
    """By events on the streams of a GPU: NCCL has a stream of its own. Its seconds count from where it was made.

    Exposed is what the main stream waits. A host that waits for sizes shows in the trace, not here.
    """

    def __init__(self) -> None:
        self._origin = recorded_event()
        self._waits: list[tuple[_DeviceMark, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self, name: str, *, backward: bool) -> _DeviceMark:
        return _DeviceMark(name, backward, recorded_event())

    def begun(self, mark: _DeviceMark, work: dist.Work) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            work.wait()
            mark.done = recorded_event()

    def wait(self, mark: _DeviceMark, wait: Callable[[], object]) -> None:
        waited_from = recorded_event()
        with record_function(f"memory: wait for {mark.name}"):
            wait()
        self._waits.append((mark, waited_from, recorded_event()))

    def take(self) -> list[Crossing]:
        torch.cuda.synchronize()
        taken, self._waits = self._waits, []
        return [
            Crossing(
                name=mark.name,
                backward=mark.backward,
                begun=self._seconds(mark.begun),
                done=self._seconds(mark.done),
                waited_from=self._seconds(waited_from),
                waited_to=self._seconds(waited_to),
            )
            for mark, waited_from, waited_to in taken
        ]

    def _seconds(self, event: torch.cuda.Event | None) -> float:
        assert event is not None
        return self._origin.elapsed_time(event) / 1000


def recorded_event(stream: torch.cuda.Stream | None = None) -> torch.cuda.Event:
    """An event that tells the time, on ``stream`` or the current one, now."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    return event

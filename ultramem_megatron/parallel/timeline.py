"""When a channel's collectives began, when they were waited for and when they were done: for profiles only.

``Timeline`` notes nothing: runs have it. ``HostTimeline`` and ``DeviceTimeline`` take its place while
``tools/profile_step`` looks.
"""

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import record_function


class Timeline:
    """Notes nothing."""

    def begun(self, name: str, work: dist.Work, *, backward: bool) -> Any:
        """A collective was begun just now; the mark to give to ``wait``."""
        return None

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

    @property
    def total_seconds(self) -> float:
        """It was under way for so long, its peers' lateness included."""
        return self.done - self.begun

    @property
    def exposed_seconds(self) -> float:
        """The rank did nothing but wait for it for so long."""
        return self.waited_to - self.waited_from


@dataclass(frozen=True, slots=True)
class Overlap:
    """What became of the time of some collectives."""

    total_seconds: float
    exposed_seconds: float

    @property
    def hidden_fraction(self) -> float:
        """Share of the time during which other work was done; 0 when there was none to hide."""
        return 1 - self.exposed_seconds / self.total_seconds if self.total_seconds else 0.0


def overlap_of(crossings: list[Crossing]) -> Overlap:
    """Sums. A wait counts up to the time under way: what it takes beyond, to wake up, is not communication."""
    total = sum(crossing.total_seconds for crossing in crossings)
    exposed = sum(min(crossing.exposed_seconds, crossing.total_seconds) for crossing in crossings)
    return Overlap(total, exposed)


@dataclass(slots=True)
class _HostMark:
    name: str
    backward: bool
    begun: float
    done: float | None = None

    def finished(self, _: object) -> None:
        self.done = time.time()


@dataclass(slots=True)
class HostTimeline(Timeline):
    """By the clock of the host (Unix time, that of traces), where collectives run on threads: gloo."""

    crossings: list[Crossing] = field(default_factory=list)

    def begun(self, name: str, work: dist.Work, *, backward: bool) -> _HostMark:
        mark = _HostMark(name, backward, time.time())
        work.get_future().add_done_callback(mark.finished)
        return mark

    def wait(self, mark: _HostMark, wait: Callable[[], object]) -> None:
        waited_from = time.time()
        with record_function(f"memory: wait for {mark.name}"):
            wait()
        waited_to = time.time()
        # the thread that notes the end may come late: it needs the interpreter
        done = min(mark.done or waited_to, waited_to)
        self.crossings.append(
            Crossing(
                name=mark.name,
                backward=mark.backward,
                begun=mark.begun,
                done=done,
                waited_from=waited_from,
                waited_to=waited_to,
            )
        )

    def phase(self, name: str) -> AbstractContextManager[object]:
        return record_function(f"memory: {name}")

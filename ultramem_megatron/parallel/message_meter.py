"""Bytes and seconds of each kind of message of a channel, summed up: what a run reports from time to time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ultramem_megatron.parallel.channel import Traffic
from ultramem_megatron.parallel.timeline import DeviceTimeline, HostTimeline, RecordingTimeline, Timeline, overlap_of


@dataclass(slots=True)
class MessageTotal:
    """Of all messages of one name and direction."""

    num_bytes: float = 0
    """What this rank sent to others."""
    seconds: float = 0.0
    """From beginning to end of each, its peers' lateness included."""
    exposed_seconds: float = 0.0
    """Of these, for which this rank waited."""


@dataclass(frozen=True, slots=True)
class _Mark:
    inner: Any
    key: tuple[str, bool]
    sent_before: int


class MessageMeter(Timeline):
    """Sums up by (name, whether backward)."""

    def __init__(self, traffic: Traffic, device: torch.device) -> None:
        """``traffic``: the meter that the channel's collectives count into."""
        self._traffic = traffic
        self._inner: RecordingTimeline = DeviceTimeline() if device.type == "cuda" else HostTimeline()
        self._totals: dict[tuple[str, bool], MessageTotal] = {}

    def start(self, name: str, *, backward: bool) -> _Mark:
        return _Mark(self._inner.start(name, backward=backward), (name, backward), self._sent())

    def begun(self, mark: _Mark, work: dist.Work) -> None:
        self._inner.begun(mark.inner, work)
        # collectives are counted when they are begun, one after the other
        self._total(mark.key).num_bytes += self._sent() - mark.sent_before

    def wait(self, mark: _Mark, wait: Callable[[], object]) -> None:
        self._inner.wait(mark.inner, wait)

    def take(self) -> dict[tuple[str, bool], MessageTotal]:
        """Sums since the last call; waits for the device."""
        for crossing in self._inner.take():
            total = self._total((crossing.name, crossing.backward))
            found = overlap_of([crossing])
            total.seconds += found.total_seconds
            total.exposed_seconds += found.exposed_seconds
        taken, self._totals = self._totals, {}
        return taken

    def _total(self, key: tuple[str, bool]) -> MessageTotal:
        return self._totals.setdefault(key, MessageTotal())

    def _sent(self) -> int:
        return self._traffic.forward_bytes + self._traffic.backward_bytes

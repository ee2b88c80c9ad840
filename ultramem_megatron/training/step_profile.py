"""Training steps with and without overlap, in turn, and what became of the lookups' communication in them."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ultramem_megatron.data.batch import Batch
from ultramem_megatron.parallel.timeline import (
    Crossing,
    DeviceTimeline,
    HostTimeline,
    Overlap,
    RecordingTimeline,
    overlap_of,
)
from ultramem_megatron.training.state import TrainState
from ultramem_megatron.training.step import train_step
from ultramem_megatron.training.step_trace import write_trace

WARM_UP_STEPS = 2
"""Of each kind: the first make buffers and connections."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanProfile:
    """Communication of one span in one step, the mean over steps and over the ranks that have it."""

    span: str
    overlap: bool
    forward: Overlap
    backward: Overlap


@dataclass(frozen=True, kw_only=True, slots=True)
class StepProfile:
    """The same on every rank."""

    seconds: list[float]
    """Of steps with overlap, on the slowest rank."""
    seconds_without: list[float]
    """Of steps without, made in turn with the others."""
    spans: list[SpanProfile]
    dense_seconds: list[float] | None = None
    """Of steps of the model without its memory layers; None where none were made."""

    @property
    def ratio(self) -> float:
        """Median seconds of a step with overlap, to those without: below 1 it is faster."""
        return statistics.median(self.seconds) / statistics.median(self.seconds_without)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Least and largest ratio of two steps that followed each other."""
        ratios = [a / b for a, b in zip(self.seconds, self.seconds_without, strict=True)]
        return min(ratios), max(ratios)

    def memory_share(self, *, overlap: bool) -> float | None:
        """What part of a step is gone without the memory layers, their optimizer and messages included; by medians."""
        if self.dense_seconds is None:
            return None
        whole = statistics.median(self.seconds if overlap else self.seconds_without)
        return 1 - statistics.median(self.dense_seconds) / whole


def profile_steps(
    state: TrainState, batches: Iterator[list[Batch]], pairs: int, trace: Path | None = None
) -> StepProfile:
    """Train ``pairs`` steps with overlap and as many without. Collective over the world.

    Args:
        state: The run; goes on by these steps.
        batches: This rank's.
        pairs: At least 1.
        trace: Where rank 0 writes one more step for Perfetto or chrome://tracing.
    """
    timelines = _watch(state)
    for _ in range(WARM_UP_STEPS):
        for overlap in (True, False):
            _timed_step(state, next(batches), overlap)
    for timeline in timelines.values():
        timeline.take()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    crossings: dict[tuple[int, bool], list[Crossing]] = defaultdict(list)
    for pair in range(pairs):
        for overlap in (True, False) if pair % 2 == 0 else (False, True):  # neither always profits from the other
            seconds[overlap].append(_timed_step(state, next(batches), overlap))
            for index, timeline in timelines.items():
                crossings[index, overlap] += timeline.take()
    if trace is not None:
        batch = next(batches)
        write_trace(state, lambda: _timed_step(state, batch, overlap=True), timelines, trace)
    return StepProfile(
        seconds=_slowest(seconds[True]),
        seconds_without=_slowest(seconds[False]),
        spans=_gather_spans(state, crossings, pairs),
    )


def time_steps(state: TrainState, batches: Iterator[list[Batch]], steps: int) -> list[float]:
    """Seconds of each of ``steps`` steps on the slowest rank, after some to warm up. Collective over the world."""
    for _ in range(WARM_UP_STEPS):
        _timed_step(state, next(batches), overlap=True)
    return _slowest([_timed_step(state, next(batches), overlap=True) for _ in range(steps)])


def _watch(state: TrainState) -> dict[int, RecordingTimeline]:
    """A timeline for each span that reads on this rank, in place of those that note nothing."""
    make = DeviceTimeline if state.groups.device.type == "cuda" else HostTimeline
    timelines: dict[int, RecordingTimeline] = {}
    for chunk in state.chunks:
        for index, layer in chunk.memory.numbered_layers():
            timelines[index] = make()
            for table in layer.tables:
                table.watch(timelines[index])
    return timelines


def _timed_step(state: TrainState, batch: list[Batch], overlap: bool) -> float:
    for chunk in state.chunks:
        chunk.memory.overlap = overlap
    dist.barrier()
    start = time.perf_counter()
    train_step(state, batch)  # ends when the loss has been read, so the device is done
    return time.perf_counter() - start


def _slowest(seconds: list[float]) -> list[float]:
    return [max(of_step) for of_step in zip(*_from_all(seconds), strict=True)]


def _gather_spans(
    state: TrainState, crossings: dict[tuple[int, bool], list[Crossing]], steps: int
) -> list[SpanProfile]:
    ours = {
        (index, overlap, backward): overlap_of([one for one in found if one.backward is backward])
        for (index, overlap), found in crossings.items()
        for backward in (False, True)
    }
    by_key: dict[tuple[int, bool, bool], list[Overlap]] = defaultdict(list)
    for of_rank in _from_all(ours):
        for key, overlap in of_rank.items():
            by_key[key].append(overlap)

    def mean(*key: Any) -> Overlap:
        found = by_key[key]
        count = len(found) * steps
        return Overlap(sum(o.total_seconds for o in found) / count, sum(o.exposed_seconds for o in found) / count)

    spans = state.config.memory.span_list
    return [
        SpanProfile(
            span=str(spans[index]),
            overlap=overlap,
            forward=mean(index, overlap, False),
            backward=mean(index, overlap, True),
        )
        for index, overlap in sorted({key[:2] for key in by_key}, key=lambda key: (key[0], not key[1]))
    ]


def _from_all(ours: Any) -> list[Any]:
    """What each rank has, in their order."""
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, ours)
    return theirs

"""Training steps with and without overlap, in turn, and what became of the lookups' communication in them."""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.hooks import RemovableHandle

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

    @property
    def ratio(self) -> float:
        """Median seconds of a step with overlap, to those without: below 1 it is faster."""
        return statistics.median(self.seconds) / statistics.median(self.seconds_without)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Least and largest ratio of two steps that followed each other."""
        ratios = [a / b for a, b in zip(self.seconds, self.seconds_without, strict=True)]
        return min(ratios), max(ratios)


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
        _write_trace(state, next(batches), timelines, trace)
    return StepProfile(
        seconds=_slowest(seconds[True]),
        seconds_without=_slowest(seconds[False]),
        spans=_gather_spans(state, crossings, pairs),
    )


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


# --- The trace --------------------------------------------------------------------------------------------------------


def _write_trace(state: TrainState, batch: list[Batch], timelines: dict[int, RecordingTimeline], path: Path) -> None:
    """One step with overlap, as rank 0 sees it."""
    if dist.get_rank():
        _timed_step(state, batch, overlap=True)
        return
    cuda = [ProfilerActivity.CUDA] if state.groups.device.type == "cuda" else []
    with _named_blocks(state), profile(activities=[ProfilerActivity.CPU, *cuda]) as recorded:
        _timed_step(state, batch, overlap=True)
    recorded.export_chrome_trace(str(path))
    if not cuda:  # a GPU's trace shows what is on its streams
        spans = state.config.memory.span_list
        crossings = {f"span {spans[index]}": timeline.take() for index, timeline in timelines.items()}
        path.write_text(json.dumps(with_crossings(json.loads(path.read_text()), crossings)))


@contextmanager
def _named_blocks(state: TrainState) -> Iterator[None]:
    """Each block's forward pass as a range of its own."""
    hooks = [
        hook
        for chunk in state.chunks
        for block in chunk.decoder.layers
        for hook in _name_forward(block, f"block {block.layer_number}")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _name_forward(module: nn.Module, name: str) -> list[RemovableHandle]:
    open_ranges: list[record_function] = []

    def enter(*_: Any) -> None:
        open_ranges.append(record_function(name))
        open_ranges[-1].__enter__()

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def with_crossings(trace: dict[str, Any], crossings: dict[str, list[Crossing]]) -> dict[str, Any]:
    """A Chrome trace and a track for each span, on which each collective lasts as long as it was under way.

    Args:
        trace: As torch's profiler wrote it: microseconds since ``baseTimeNanoseconds`` of Unix time.
        crossings: By the name of the track; their seconds are of Unix time.
    """
    base = trace.get("baseTimeNanoseconds", 0) / 1e9
    events = list(trace["traceEvents"])
    for thread, (name, found) in enumerate(crossings.items()):
        place = {"pid": "memory communication", "tid": thread}
        events.append({"ph": "M", "name": "thread_name", **place, "args": {"name": name}})
        for number, one in enumerate(found):
            title = f"{one.name}{' (gradient)' if one.backward else ''}"
            # asynchronous events: they may overlap each other on one track
            event = {"cat": "memory", "name": title, "id": f"{thread}.{number}", **place}
            events.append({**event, "ph": "b", "ts": (one.begun - base) * 1e6})
            events.append({**event, "ph": "e", "ts": (one.done - base) * 1e6})
    return {**trace, "traceEvents": events}

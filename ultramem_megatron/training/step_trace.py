"""One step for Perfetto or chrome://tracing: blocks, waits, and a track for each span's collectives."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.hooks import RemovableHandle

from ultramem_megatron.parallel.timeline import Crossing, RecordingTimeline
from ultramem_megatron.training.state import TrainState


def write_trace(
    state: TrainState, step: Callable[[], object], timelines: Mapping[int, RecordingTimeline], path: Path
) -> None:
    """One step as rank 0 sees it. Collective over the world.

    Args:
        state: The run.
        step: Takes the step.
        timelines: Of each memory layer that reads on this rank; what they have noted is taken.
        path: Where rank 0 writes.
    """
    if dist.get_rank():
        step()
        return
    cuda = [ProfilerActivity.CUDA] if state.groups.device.type == "cuda" else []
    with _named_blocks(state), profile(activities=[ProfilerActivity.CPU, *cuda]) as recorded:
        step()
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

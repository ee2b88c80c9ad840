"""What a recorded example of collectives comes to."""

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.parallel.channel import Channel
from ultramem_megatron.parallel.collectives import begin_all_to_all, begin_reduce_scatter_tokens
from ultramem_megatron.parallel.timeline import Crossing, HostTimeline, overlap_of
from ultramem_megatron.testing.distributed import run_distributed


def crossing(begun: float, done: float, waited_from: float, waited_to: float) -> Crossing:
    return Crossing(name="rows", backward=False, begun=begun, done=done, waited_from=waited_from, waited_to=waited_to)


@pytest.mark.parametrize(
    ("crossings", "total", "exposed"),
    [
        ([], 0, 0),
        ([crossing(0, 4, 3, 4)], 4, 1),
        ([crossing(0, 4, 0, 4)], 4, 4),
        ([crossing(0, 4, 6, 6)], 4, 0),
        # waking up took until 5: not communication
        ([crossing(0, 4, 3, 5)], 4, 1),
        # one after the other
        ([crossing(0, 4, 3, 4), crossing(10, 12, 11, 12)], 6, 2),
        # side by side: from 0 to 6, and while the first was waited for the second did not run beside work
        ([crossing(0, 4, 2, 4), crossing(1, 6, 4, 6)], 6, 4),
        ([crossing(0, 9, 8, 9), crossing(1, 3, 2, 3)], 9, 2),
    ],
)
def test_by_hand(crossings: list[Crossing], total: float, exposed: float) -> None:
    found = overlap_of(crossings)
    assert (found.total_seconds, found.exposed_seconds) == (total, exposed)
    assert found.hidden_fraction == (1 - exposed / total if total else 0)


def record() -> list[Crossing]:
    timeline = HostTimeline()
    channel = Channel(dist.group.WORLD, timeline=timeline)  # type: ignore[arg-type]
    x = torch.ones(2, 1, requires_grad=True)
    begin_all_to_all(x, [1, 1], [1, 1], channel, "rows").finish().sum().backward()
    begin_reduce_scatter_tokens(x.detach(), [1, 1], channel, "products").finish()
    found = timeline.take()
    assert timeline.take() == [], "taken"
    return found


def test_both_directions_are_recorded() -> None:
    for found in run_distributed(2, record):
        assert [(one.name, one.backward) for one in found] == [("rows", False), ("rows", True), ("products", False)]
        for one in found:
            assert one.begun <= one.done <= one.waited_to and one.begun <= one.waited_from <= one.waited_to

"""The lane hands a result from the block where it is read to the block where it is added, over stages too."""

from collections.abc import Generator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ultramem_megatron.config.memory import parse_spans


class Times(nn.Module):
    """Stands for a memory layer."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    waits = 0

    async def look_up(self, x: Tensor) -> Tensor:
        return x * self.factor


def make_lane(spans: str, blocks: range) -> Any:
    """The lane of a stage: layer i of the whole model multiplies by 10 ** (i + 1)."""
    from ultramem_megatron.model.memory_lane import MemoryLane

    parsed = parse_spans(spans)
    layers = {i: Times(10.0 ** (i + 1)) for i, span in enumerate(parsed) if span.read in blocks}
    return MemoryLane(parsed, blocks, layers)  # type: ignore[arg-type]


def run_stage(lane: Any, blocks: range, received: Tensor) -> tuple[Tensor, list[float]]:
    """Blocks that each read their own number and add nothing; the message to the next stage, and what was added."""
    hidden, added = lane.unpack(received), []
    for block in blocks:
        lane.start(block, torch.full((1, 1, 1), float(block)))
        after = lane.finish(block, hidden)
        added.append(float((after - hidden).sum()))
        hidden = after
    return lane.pack(hidden), added


ZERO = torch.zeros(1, 1, 1)


def test_results_are_added_where_their_span_ends(megatron: ModuleType) -> None:
    lane = make_lane("1:2/3:3", range(1, 5))
    for _ in range(2):  # nothing is left between passes
        assert run_stage(lane, range(1, 5), ZERO)[1] == [0.0, 10.0, 300.0, 0.0]
    with pytest.raises(AssertionError):
        lane.finish(2, ZERO)


def test_layers_are_named_by_their_span(megatron: ModuleType) -> None:
    lane = make_lane("1:2/3:3/5:6", range(3, 7))
    assert [name for name, _ in lane.named_modules() if name.count(".") == 1] == ["layers.1", "layers.2"]


def test_an_empty_lane_changes_nothing(megatron: ModuleType) -> None:
    from ultramem_megatron.model.memory_lane import MemoryLane

    empty, hidden = MemoryLane((), range(1, 2), {}), torch.ones(2)
    assert empty.unpack(hidden) is hidden
    empty.start(1, hidden)
    assert empty.finish(1, hidden) is hidden
    assert empty.pack(hidden) is hidden
    assert empty.unpack(None) is None  # the first stage
    assert empty.sharded_state_dict("memory.") == {}


@pytest.mark.parametrize(
    ("spans", "added", "message_rows"),
    [
        ("1:2/3:4", [0, 10, 0, 300, 0, 0], [1, 1]),
        ("2:3", [0, 0, 20, 0, 0, 0], [2, 1]),
        ("2:5", [0, 0, 0, 0, 20, 0], [2, 2]),
        ("1:4/5:6", [0, 0, 0, 10, 0, 500], [2, 1]),
        ("2:3/4:6", [0, 0, 20, 0, 0, 400], [2, 2]),
    ],
)
def test_only_a_crossed_boundary_carries_a_result(
    megatron: ModuleType, spans: str, added: list[float], message_rows: list[int]
) -> None:
    """Three stages of two blocks."""
    message, seen, rows = ZERO, [], []
    for blocks in (range(1, 3), range(3, 5), range(5, 7)):
        message, of_stage = run_stage(make_lane(spans, blocks), blocks, message)
        seen += of_stage
        rows.append(message.shape[0])
    assert seen == added
    assert rows == [*message_rows, 1]
    assert float(message.sum()) == sum(added)


def test_gradients_come_back_through_a_message(megatron: ModuleType) -> None:
    """As the schedule does: each stage has a graph of its own, and the message's data is freed once it is sent."""
    first, middle, last = (make_lane("1:5", blocks) for blocks in (range(1, 3), range(3, 5), range(5, 7)))
    x = torch.randn(3, 2, 4, requires_grad=True)
    first.start(1, x)
    sent = first.pack(first.finish(2, x * 2))
    assert sent._base is None and sent.is_contiguous(), "megatron-core frees the data of no view"
    received = sent.detach().requires_grad_()
    passed = middle.pack(middle.finish(4, middle.unpack(received) * 3))
    received_last = passed.detach().requires_grad_()
    last.finish(5, last.unpack(received_last)).sum().backward()
    passed.backward(received_last.grad)
    sent.backward(received.grad)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, 2 * 3 + 10))


def test_a_message_has_one_type(megatron: ModuleType) -> None:
    lane = make_lane("1:3", range(1, 3))
    lane.start(1, torch.ones(1, 1, 1))
    with pytest.raises(AssertionError):
        lane.pack(torch.ones(1, 1, 1, dtype=torch.bfloat16))


# --- What runs beside a lookup ----------------------------------------------------------------------------------------


class Pause:
    """Awaited once."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Waiting(nn.Module):
    """Stands for a memory layer that waits for sizes, for row numbers and for rows."""

    waits = 3

    def __init__(self, diary: list[str]) -> None:
        super().__init__()
        self.diary = diary

    async def look_up(self, x: Tensor) -> Tensor:
        for what in ("sizes", "numbers", "rows"):
            self.diary.append(f"begin {what}")
            await Pause()
            self.diary.append(f"wait {what}")
        return x


def diary_of(spans: str, blocks: range, *, overlap: bool = True, recompute: bool = False) -> str:
    """Blocks as ``LaneTransformerLayer`` runs them: attention is A, the MLP M, a block that is run again B."""
    from ultramem_megatron.model.memory_lane import MemoryLane

    diary: list[str] = []
    parsed = parse_spans(spans)
    layers = {i: Waiting(diary) for i, span in enumerate(parsed) if span.read in blocks}
    lane = MemoryLane(parsed, blocks, layers, overlap=overlap, recompute=recompute)  # type: ignore[arg-type]
    for block in blocks:
        if recompute:
            diary.append(f"B{block}")
            lane.advance()
            lane.start(block, ZERO)
        else:
            diary.append(f"A{block}")
            lane.advance()
            lane.start(block, ZERO)
            diary.append(f"M{block}")
            lane.advance()
        lane.finish(block, ZERO)
    lane.pack(ZERO)
    return "; ".join(diary)


SIZES, NUMBERS, ROWS = ("begin sizes; ", "wait sizes; begin numbers; ", "wait numbers; begin rows; ")


@pytest.mark.parametrize(
    ("spans", "settings", "expected"),
    [
        ("1:2", {}, f"A1; {SIZES}M1; {NUMBERS}A2; {ROWS}M2; wait rows"),
        ("1:3", {}, f"A1; {SIZES}M1; {NUMBERS}A2; {ROWS}M2; A3; M3; wait rows"),
        ("2:2", {}, f"A1; M1; A2; {SIZES}{NUMBERS}{ROWS}M2; wait rows"),
        ("1:2", {"overlap": False}, f"A1; {SIZES}{NUMBERS}{ROWS}wait rows; M1; A2; M2"),
        ("1:4", {"recompute": True}, f"B1; {SIZES}B2; {NUMBERS}B3; {ROWS}B4; wait rows"),
        ("1:2", {"recompute": True}, f"B1; {SIZES}{NUMBERS}{ROWS}B2; wait rows"),
        ("1:1", {"recompute": True}, f"B1; {SIZES}{NUMBERS}{ROWS}wait rows"),
    ],
)
def test_the_last_stretches_hide_the_last_exchanges(
    megatron: ModuleType, spans: str, settings: dict[str, bool], expected: str
) -> None:
    assert diary_of(spans, range(1, parse_spans(spans)[-1].add + 1), **settings) == expected


def test_a_lookup_ends_with_its_stage(megatron: ModuleType) -> None:
    assert diary_of("1:4", range(1, 3)) == f"A1; {SIZES}M1; {NUMBERS}A2; {ROWS}M2; wait rows"
    assert diary_of("1:4", range(1, 2)) == f"A1; {SIZES}{NUMBERS}{ROWS}M1; wait rows"


def test_evaluation_of_a_run_that_recomputes(megatron: ModuleType) -> None:
    """Blocks are then not run again, and advance the lane more often than it counts on: the last wait stays."""
    from ultramem_megatron.model.memory_lane import MemoryLane

    diary: list[str] = []
    lane = MemoryLane(parse_spans("1:3"), range(1, 4), {0: Waiting(diary)}, recompute=True)  # type: ignore[dict-item]
    lane.start(1, ZERO)
    for _ in range(5):
        lane.advance()
    assert diary[-1] == "begin rows"
    lane.finish(3, ZERO)
    assert diary[-1] == "wait rows"

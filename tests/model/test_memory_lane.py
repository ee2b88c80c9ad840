"""The lane hands a result from the block where it is read to the block where it is added."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ultramem_megatron.config.memory import Span


class Times(nn.Module):
    """Stands for a memory layer."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.fixture
def lane(megatron: ModuleType) -> Any:
    """Spans 1:2 (times 10) and 3:3 (times 100), numbered 4 and 5 in the whole model."""
    from ultramem_megatron.model.memory_lane import MemoryLane

    return MemoryLane({4: (Span(1, 2), Times(10.0)), 5: (Span(3, 3), Times(100.0))})  # type: ignore[dict-item]


def run_blocks(lane: Any) -> list[float]:
    """Four blocks that each read their own number and add nothing themselves."""
    outputs = []
    for block in range(1, 5):
        lane.start(block, torch.tensor(float(block)))
        outputs.append(float(lane.finish(block, torch.tensor(0.0))))
    return outputs


def test_results_are_added_where_their_span_ends(lane: Any) -> None:
    assert run_blocks(lane) == [0.0, 10.0, 300.0, 0.0]


def test_nothing_is_left_between_passes(lane: Any) -> None:
    run_blocks(lane)
    assert run_blocks(lane) == [0.0, 10.0, 300.0, 0.0]
    with pytest.raises(KeyError):
        lane.finish(2, torch.tensor(0.0))


def test_layers_are_named_by_their_span(lane: Any) -> None:
    assert [name for name, _ in lane.named_modules() if name.count(".") == 1] == ["layers.4", "layers.5"]


def test_an_empty_lane_changes_nothing(megatron: ModuleType) -> None:
    from ultramem_megatron.model.memory_lane import MemoryLane

    empty, hidden = MemoryLane({}), torch.ones(2)
    empty.start(1, hidden)
    assert empty.finish(1, hidden) is hidden
    assert empty.sharded_state_dict("memory.") == {}

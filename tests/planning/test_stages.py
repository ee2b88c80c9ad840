"""Which blocks are on which pipeline stage, and which boundaries a span crosses."""

import pytest

from ultramem_megatron.config.load import resolve
from ultramem_megatron.config.memory import parse_spans
from ultramem_megatron.planning.stages import Stages, stages_of


def test_stages_of_an_interleaved_pipeline() -> None:
    """8 blocks on 2 ranks of 2 chunks: rank 0 has blocks 1, 2 and 5, 6."""
    stages = Stages(pipeline=2, chunks=2, blocks=2)
    assert stages.count == 4
    assert [stages.of_chunk(0, 1), stages.of_chunk(1, 0)] == [2, 1]
    assert [list(stages.blocks_of(stage)) for stage in range(4)] == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert [stages.of_block(block) for block in (1, 2, 3, 8)] == [0, 0, 1, 3]


@pytest.mark.parametrize(
    ("spans", "crossed"),
    [
        ("1:2/3:4", (False, False, False)),
        ("2:3", (True, False, False)),
        ("1:8", (True, True, True)),
        ("2:2/4:5/6:8", (False, True, True)),
        ("3:6/7:8", (False, True, False)),
    ],
)
def test_boundaries_that_a_span_crosses(spans: str, crossed: tuple[bool, ...]) -> None:
    for pipeline, chunks in ((4, 1), (2, 2)):
        assert Stages(pipeline=pipeline, chunks=chunks, blocks=2).crossed(parse_spans(spans)) == crossed


def test_one_stage_has_no_boundary() -> None:
    assert Stages(pipeline=1, chunks=1, blocks=4).crossed(parse_spans("1:4")) == ()


def test_stages_of_a_config() -> None:
    settings = {"model": {"layers": 12}, "parallelism": {"pipeline": 2, "virtual_pipeline": 3}}
    assert stages_of(resolve([("test", settings)])) == Stages(pipeline=2, chunks=3, blocks=2)

"""The shapes of messages between stages, in the order in which the neighbours send them."""

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.planning.stages import Stages
from ultramem_megatron.testing.distributed import run_distributed

HIDDEN, DOUBLED = (6, 2, 4), (12, 2, 4)


def received(stages: Stages, crossed: tuple[bool, ...], micro_batches: int) -> dict[str, list[tuple[int, ...]]]:
    """What this rank expects from the rank before (activations) and from the one after (gradients)."""
    from megatron.core.model_parallel_config import ModelParallelConfig

    from ultramem_megatron.parallel.stage_messages import StageMessages

    config = ModelParallelConfig(
        pipeline_model_parallel_size=stages.pipeline,
        pipeline_dtype=torch.float32,
        microbatch_group_size_per_vp_stage=2,
    )
    messages: Any = StageMessages(dist.group.WORLD, config, stages=stages, crossed=crossed, hidden_shape=HIDDEN)
    assert not config.variable_seq_lengths, "the model's own settings stay"
    messages.begin(1)
    messages.begin(micro_batches)  # each pass starts anew
    return {"activations": list(messages._activations), "gradients": list(messages._gradients)}


def test_shapes_of_a_pipeline_of_three(megatron: ModuleType) -> None:
    first, middle, last = run_distributed(3, received, Stages(pipeline=3, chunks=1, blocks=1), (True, False), 2)
    assert first == {"activations": [], "gradients": [DOUBLED, DOUBLED]}
    assert middle == {"activations": [DOUBLED, DOUBLED], "gradients": [HIDDEN, HIDDEN]}
    assert last == {"activations": [HIDDEN, HIDDEN], "gradients": []}


def test_shapes_under_the_interleaved_schedule(megatron: ModuleType) -> None:
    """Two ranks of two chunks; the chunks take turns after every second micro-batch, and backward the other way."""
    stages = Stages(pipeline=2, chunks=2, blocks=1)
    first, last = run_distributed(2, received, stages, (True, False, False), 4)
    assert first == {
        "activations": [HIDDEN] * 4,  # stage 1 -> stage 2; what stage 3 makes is the loss
        "gradients": [HIDDEN, HIDDEN, DOUBLED, DOUBLED] * 2,  # stage 3 -> 2, then 1 -> 0
    }
    assert last == {
        "activations": [DOUBLED, DOUBLED, HIDDEN, HIDDEN] * 2,  # stage 0 -> 1, then 2 -> 3
        "gradients": [HIDDEN] * 4,  # stage 2 -> stage 1
    }


def test_the_next_shape_is_told_only_where_something_comes(megatron: ModuleType) -> None:
    def ask() -> list[Any]:
        from megatron.core.model_parallel_config import ModelParallelConfig

        from ultramem_megatron.parallel.stage_messages import StageMessages

        stages = Stages(pipeline=1, chunks=1, blocks=1)
        messages: Any = StageMessages(
            dist.group.WORLD, ModelParallelConfig(), stages=stages, crossed=(), hidden_shape=HIDDEN
        )
        messages._activations, messages._gradients = iter([HIDDEN, DOUBLED]), iter([DOUBLED])
        asked = [(True, False), (False, False), (True, True)]
        return [messages._communicate_shapes(None, None, *which) for which in asked]

    (told,) = run_distributed(1, ask)
    assert told == [(HIDDEN, (0,)), ((0,), (0,)), (DOUBLED, DOUBLED)]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_single_stage_expects_nothing(megatron: ModuleType, micro_batches: int) -> None:
    (alone,) = run_distributed(1, received, Stages(pipeline=1, chunks=1, blocks=4), (), micro_batches)
    assert alone == {"activations": [], "gradients": []}

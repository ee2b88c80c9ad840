"""Blocks dealt to pipeline stages, and the boundaries between stages that a memory span crosses. Integers only."""

from collections.abc import Iterable
from dataclasses import dataclass

from ultramem_megatron.config.memory import Span
from ultramem_megatron.config.run import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """``pipeline * chunks`` stages in the order of the blocks; rank r of a pipeline has r, r + pipeline, and so on."""

    pipeline: int
    """Ranks of a pipeline."""

    chunks: int
    """Stages of each rank: 1, or more under the interleaved schedule."""

    blocks: int
    """Blocks of one stage."""

    @property
    def count(self) -> int:
        """Stages of the whole model."""
        return self.pipeline * self.chunks

    def of_chunk(self, pipeline_rank: int, chunk: int) -> int:
        """The stage that is chunk ``chunk`` of a rank; all count from 0."""
        return chunk * self.pipeline + pipeline_rank

    def of_block(self, block: int) -> int:
        """The stage of a block; blocks count from 1, stages from 0."""
        return (block - 1) // self.blocks

    def blocks_of(self, stage: int) -> range:
        """The blocks of a stage, counted from 1."""
        return range(stage * self.blocks + 1, (stage + 1) * self.blocks + 1)

    def crossed(self, spans: Iterable[Span]) -> tuple[bool, ...]:
        """For the boundary after each stage but the last: whether a span is under way there."""
        reaches = [(self.of_block(span.read), self.of_block(span.add)) for span in spans]
        return tuple(any(first <= stage < last for first, last in reaches) for stage in range(self.count - 1))


def stages_of(config: RunConfig) -> Stages:
    """How ``config`` cuts its model."""
    parallelism = config.parallelism
    chunks = parallelism.virtual_pipeline
    return Stages(
        pipeline=parallelism.pipeline,
        chunks=chunks,
        blocks=config.model.layers // (parallelism.pipeline * chunks),
    )

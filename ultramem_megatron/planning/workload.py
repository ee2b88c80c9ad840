"""What one rank does in one optimizer step: the integers that every cost function starts from."""

from dataclasses import dataclass

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.config.training import Precision
from ultramem_megatron.planning.comm_cost import BF16_BYTES, FP32_BYTES, LookupShape
from ultramem_megatron.planning.memory_shape import memory_shape
from ultramem_megatron.planning.stages import stages_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A run on a number of ranks."""

    world_size: int
    data_ranks: int
    stage_ranks: int
    """Ranks of one pipeline stage."""

    micro_batches: int
    """Forward passes of one rank in one optimizer step."""

    micro_batch_tokens: int
    """Tokens of one micro-batch, all tensor-parallel ranks together."""

    tables_of_stage: tuple[int, ...]
    """Memory tables on each pipeline stage."""

    element_bytes: int
    """Bytes of an element of weights and activations."""

    pending_bytes: tuple[int, ...]
    """What a rank of each pipeline stage sends to its neighbours in one micro-batch, for spans that cross a boundary:
    the results forward, and their gradients backward."""

    lookup: LookupShape
    """One lookup of one rank. The tensor-parallel ranks share the tokens of a micro-batch evenly."""

    @property
    def busiest_stage_tables(self) -> int:
        """Tables of the stage that has most."""
        return max(self.tables_of_stage)


def workload_of(config: RunConfig, world_size: int, zipf_exponent: float = 0.0) -> Workload:
    """What ``config`` makes one of ``world_size`` ranks do.

    Args:
        config: The run.
        world_size: All ranks.
        zipf_exponent: Skew of the picks, as in ``skew.py``.

    Raises:
        ConfigError: The degrees or the batch do not fit ``world_size``.
    """
    config.check_world_size(world_size)
    training, parallelism, memory = config.training, config.parallelism, config.memory
    data_ranks = world_size // (parallelism.tensor * parallelism.pipeline)
    tokens = training.micro_batch_size * config.model.seq_length
    element_bytes = BF16_BYTES if training.precision == Precision.BF16 else FP32_BYTES
    shape = memory_shape(config)
    return Workload(
        world_size=world_size,
        data_ranks=data_ranks,
        stage_ranks=world_size // parallelism.pipeline,
        micro_batches=training.micro_batches(data_ranks),
        micro_batch_tokens=tokens,
        tables_of_stage=_tables_of_stage(config),
        element_bytes=element_bytes,
        pending_bytes=_pending_bytes(config, element_bytes),
        lookup=LookupShape(
            tokens=tokens // parallelism.tensor,
            picks=memory.picks,
            num_rows=memory.num_rows,
            value_dim=memory.value_dim,
            element_bytes=element_bytes,
            expansion=shape.blocks,
            cores=shape.cores,
            pre_value_dim=shape.pre_value_dim,
            zipf_exponent=zipf_exponent,
        ),
    )


def _tables_of_stage(config: RunConfig) -> tuple[int, ...]:
    stages = stages_of(config)
    ranks = [stages.of_block(span.read) % stages.pipeline for span in config.memory.span_list]
    return tuple(ranks.count(rank) for rank in range(stages.pipeline))


def _pending_bytes(config: RunConfig, element_bytes: int) -> tuple[int, ...]:
    """One hidden state for each crossed boundary: to the rank after it, and its gradient to the rank before."""
    stages, model, parallelism = stages_of(config), config.model, config.parallelism
    # without sequence parallelism each tensor-parallel rank sends all tokens, as it does for the hidden state
    tokens = config.training.micro_batch_size * model.seq_length // (parallelism.tensor if parallelism.sequence else 1)
    messages = [0] * stages.pipeline
    for boundary, crossed in enumerate(stages.crossed(config.memory.span_list)):
        messages[boundary % stages.pipeline] += crossed
        messages[(boundary + 1) % stages.pipeline] += crossed
    return tuple(count * tokens * model.hidden * element_bytes for count in messages)

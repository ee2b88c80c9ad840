"""Plan + RunConfig + groups -> this rank's model chunks, with their initial weights."""

from typing import Any

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.transformer_config import TransformerConfig

from ultramem_megatron.config.memory import Span
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.memory.layer import LayerPlace, MemoryLayer
from ultramem_megatron.memory.token_share import TokenShare
from ultramem_megatron.memory.variants.composition import table_shape
from ultramem_megatron.memory.variants.registry import VARIANTS
from ultramem_megatron.model.initial_weights import set_initial_weights
from ultramem_megatron.model.layer_spec import LaneTransformerLayer, block_spec
from ultramem_megatron.model.memory_lane import MemoryLane
from ultramem_megatron.model.transformer_config import parameter_dtype
from ultramem_megatron.parallel.channel import Channel
from ultramem_megatron.parallel.groups import Groups
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.planning.plan import Plan


class UltraMemModel(GPTModel):
    """megatron-core's GPT with a memory lane beside its blocks."""

    def __init__(self, lane: MemoryLane, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.memory = lane
        for layer in self.decoder.layers:
            assert isinstance(layer, LaneTransformerLayer)
            layer.lane = (lane,)

    @property
    def memory_layers(self) -> list[MemoryLayer]:
        """The memory layers of this chunk."""
        return [layer for _, layer in self.memory.numbered_layers()]


def build_model_chunks(
    config: RunConfig, plan: Plan, groups: Groups, transformer: TransformerConfig
) -> list[UltraMemModel]:
    """This rank's chunks: one, or ``parallelism.virtual_pipeline`` under the interleaved schedule."""
    chunks = [
        build_chunk(config, plan, groups, transformer, stage) for stage in range(config.parallelism.virtual_pipeline)
    ]
    for chunk in chunks:
        set_initial_weights(chunk, chunk.sharded_state_dict(), config.model, config.training.seed)
    return chunks


def build_chunk(
    config: RunConfig, plan: Plan, groups: Groups, transformer: TransformerConfig, virtual_stage: int
) -> UltraMemModel:
    """One chunk of this rank; its weights are not set yet."""
    model, parallelism = config.model, config.parallelism
    stages = parallelism.pipeline * parallelism.virtual_pipeline
    blocks = model.layers // stages
    # interleaved: chunk v of pipeline rank p is stage v * pipeline + p
    stage = virtual_stage * parallelism.pipeline + groups.pipeline_rank
    here = range(stage * blocks + 1, (stage + 1) * blocks + 1)
    chunk = UltraMemModel(
        _build_lane(config, plan, groups, here),
        config=transformer,
        transformer_layer_spec=block_spec(blocks, model.experts),
        vocab_size=model.padded_vocab_size,
        max_sequence_length=model.seq_length,
        pre_process=stage == 0,
        post_process=stage == stages - 1,
        position_embedding_type="rope",
        rotary_base=model.rope_base,
        share_embeddings_and_output_weights=model.tie_embeddings,
        pg_collection=groups.mcore,
        vp_stage=virtual_stage if parallelism.virtual_pipeline > 1 else None,
    )
    if not config.memory.span_list:
        _send_experts_through_their_buffers(chunk)
    return chunk.to(groups.device)


def _send_experts_through_their_buffers(chunk: UltraMemModel) -> None:
    """Give experts megatron-core's expert buffers and optimizer in every layout.

    megatron-core does so only where ranks share the experts; then a checkpoint of one of the two kinds of layout
    would lack the optimizer that the other has. Where there are value tables the buffers are theirs.
    """
    for module in chunk.modules():
        if isinstance(module, SequentialMLP):
            for parameter in module.parameters():
                parameter.allreduce = False


def _build_lane(config: RunConfig, plan: Plan, groups: Groups, blocks: range) -> MemoryLane:
    layers: dict[int, tuple[Span, MemoryLayer]] = {}
    for index, span in enumerate(config.memory.span_list):
        if span.read in blocks:
            layers[index] = (span, _build_memory_layer(config, plan, groups, index))
    return MemoryLane(layers)


def _build_memory_layer(config: RunConfig, plan: Plan, groups: Groups, index: int) -> MemoryLayer:
    placement = plan.placements[index]
    partition = PARTITIONS[placement.partition](table_shape(config), Channel(groups.mem))
    micro_batches = config.training.micro_batches(groups.data_ranks)
    place = LayerPlace(
        device=groups.device,
        share=TokenShare(groups.tp, config.parallelism.sequence),
        dp_cp=groups.dp_cp,
        mem_dp=groups.mem_dp,
        dtype=parameter_dtype(config),
        loss_scale=1 / (micro_batches * groups.tp.size()),
    )
    return VARIANTS[config.memory.variant](config, place, partition)

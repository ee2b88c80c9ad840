"""Plan + RunConfig + groups -> this rank's model chunks, with their initial weights."""

from typing import Any

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.config.training import Recompute
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
from ultramem_megatron.planning.stages import stages_of


class UltraMemModel(GPTModel):
    """megatron-core's GPT with a memory lane beside its blocks."""

    def __init__(self, lane: MemoryLane, *, recompute: bool, **arguments: Any) -> None:
        """``recompute``: whether blocks keep nothing but their input. ``arguments``: of megatron-core's model."""
        super().__init__(**arguments)
        self.memory = lane
        for layer in self.decoder.layers:
            assert isinstance(layer, LaneTransformerLayer)
            layer.lane, layer.recompute = (lane,), recompute

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor | None] | None) -> None:
        """megatron-core's hook before each forward pass: what the stage before has sent, None on the first."""
        (message,) = input_tensor if isinstance(input_tensor, list) else [input_tensor]
        super().set_input_tensor(self.memory.unpack(message))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As GPT's; what goes to the next stage also carries the result of a span that ends there or later."""
        return self.memory.pack(super().forward(*args, **kwargs))

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
    model, stages = config.model, stages_of(config)
    stage = stages.of_chunk(groups.pipeline_rank, virtual_stage)
    chunk = UltraMemModel(
        _build_lane(config, plan, groups, stages.blocks_of(stage)),
        recompute=config.training.recompute is Recompute.FULL,
        config=transformer,
        transformer_layer_spec=block_spec(stages.blocks, model.experts),
        vocab_size=model.padded_vocab_size,
        max_sequence_length=model.seq_length,
        pre_process=stage == 0,
        post_process=stage == stages.count - 1,
        position_embedding_type="rope",
        rotary_base=model.rope_base,
        share_embeddings_and_output_weights=model.tie_embeddings,
        pg_collection=groups.mcore,
        vp_stage=virtual_stage if stages.chunks > 1 else None,
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
    spans = config.memory.span_list
    layers = {
        index: _build_memory_layer(config, plan, groups, index)
        for index, span in enumerate(spans)
        if span.read in blocks
    }
    recompute = config.training.recompute is Recompute.FULL
    return MemoryLane(spans, blocks, layers, overlap=config.memory.overlap, recompute=recompute)


def _build_memory_layer(config: RunConfig, plan: Plan, groups: Groups, index: int) -> MemoryLayer:
    placement = plan.placements[index]
    partition = PARTITIONS[placement.partition](table_shape(config), Channel(groups.mem, nodes=groups.mem_nodes))
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

"""The module specs of a GPT whose blocks may read from and add to the memory lane."""

from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from ultramem_megatron.model.memory_lane import MemoryLane
from ultramem_megatron.model.norm import RMSNorm


class LaneTransformerLayer(TransformerLayer):
    """megatron-core's block, which tells the lane when it has its FFN input and when it is done.

    The read point is the normed FFN input, as in the published code and in UltraMemV2 (appendix A.1); the paper says
    only "layer a". A memory layer therefore needs no norm of its own.
    """

    lane: tuple[MemoryLane, ...] = ()
    """The chunk's lane. In a tuple, so that its parameters are registered once, with the model."""

    def _forward_pre_mlp_layernorm(self, hidden_states: Tensor) -> Tensor:
        normed = super()._forward_pre_mlp_layernorm(hidden_states)
        for lane in self.lane:
            lane.start(self.layer_number, normed)
        return normed

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        hidden, context = super().forward(*args, **kwargs)
        for lane in self.lane:
            hidden = lane.finish(self.layer_number, hidden)
        return hidden, context


def block_spec(layers: int, experts: int) -> TransformerBlockSubmodules:
    """The blocks of one model chunk and the final norm, from megatron-core's local implementation.

    Args:
        layers: Blocks.
        experts: Of the mixture that stands in place of each MLP; 0 for the MLP.
    """
    # experts one after the other: the grouped product needs Transformer Engine or NVIDIA's grouped_gemm
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", num_experts=experts or None, moe_grouped_gemm=False)
    spec.module = LaneTransformerLayer
    spec.submodules.input_layernorm = RMSNorm
    spec.submodules.pre_mlp_layernorm = RMSNorm
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=RMSNorm)

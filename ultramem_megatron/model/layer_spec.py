"""The module specs of a GPT whose blocks may read from and add to the memory lane."""

from functools import partial
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import checkpoint
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from ultramem_megatron.model.memory_lane import MemoryLane
from ultramem_megatron.model.norm import RMSNorm


class LaneTransformerLayer(TransformerLayer):
    """megatron-core's block, which tells the lane when it has its FFN input, and when attention and MLP are given out.

    The read point is the normed FFN input, as in the published code and in UltraMemV2 (appendix A.1); the paper says
    only "layer a". A memory layer therefore needs no norm of its own.

    With ``recompute`` the backward pass of training runs the block again, but not the lane: the lookup would talk to
    other ranks twice. It then begins when the block is done: the numbers are the same, but for the draws of a dropout
    that block and memory layer share.
    """

    lane: tuple[MemoryLane, ...] = ()
    """The chunk's lane. In a tuple, so that its parameters are registered once, with the model."""

    recompute = False
    """Whether the block keeps nothing but its input for the backward pass."""

    _held: list[Tensor] | None = None
    """Takes the FFN input in place of the lane while a block runs that keeps nothing."""

    def _forward_pre_mlp_layernorm(self, hidden_states: Tensor) -> Tensor:
        normed = super()._forward_pre_mlp_layernorm(hidden_states)
        if self._held is None:
            self._advance()
            self._start(normed)
        else:
            self._held.append(normed)
        return normed

    def forward(self, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        """As megatron-core's, with the lane. ``others`` get no gradient: masks, rotary angles."""
        if self.recompute and self.training:
            hidden, *read = checkpoint(partial(self._without_lane, others), False, hidden_states)
            self._advance()
            for normed in read:
                self._start(normed)
        else:
            hidden, _ = super().forward(hidden_states, **others)
            self._advance()
        for lane in self.lane:
            hidden = lane.finish(self.layer_number, hidden)
        return hidden, None

    def _without_lane(self, others: dict[str, Any], hidden_states: Tensor) -> tuple[Tensor, ...]:
        """The block's output, and its FFN input where a span reads it. Runs once forward and once more backward."""
        held: list[Tensor] = []
        self._held = held
        hidden, _ = super().forward(hidden_states, **others)
        self._held = None
        return (hidden, *held) if any(lane.reads(self.layer_number) for lane in self.lane) else (hidden,)

    def _advance(self) -> None:
        for lane in self.lane:
            lane.advance()

    def _start(self, normed: Tensor) -> None:
        for lane in self.lane:
            lane.start(self.layer_number, normed)


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

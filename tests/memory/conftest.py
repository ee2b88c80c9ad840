"""Memory layers of small odd sizes, as the registry builds them, and their weights in the names of the oracle."""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.load import resolve
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.lone_layer import draw_weights
from ultramem_megatron.testing.reference_layer import ReferenceOutput, reference_memory_layer
from ultramem_megatron.testing.reference_weights import leading_singular_vectors

if TYPE_CHECKING:  # importing a layer imports megatron-core
    from ultramem_megatron.memory.layer import MemoryLayer
    from ultramem_megatron.memory.value_expansion import PlainSlots, SlotShuffle

HIDDEN = 16
SECTIONS = {
    "model": {"layers": 4, "hidden": HIDDEN, "ffn_hidden": 32, "heads": 2, "seq_length": 8, "vocab_size": 64},
    "memory": {
        "variant": "ultramem",
        "spans": "1:2",
        "keys_per_side": 7,
        "top_m": 3,
        "heads": 4,
        "heads_per_query": 2,
        "key_dim": 12,
        "value_dim": 12,
        "tucker_rank": 2,
        "cores": 2,
        "expansion": 4,
        "query_conv_kernel": 5,
        "auxiliary_weight": 0.25,
        "auxiliary_margin": 0.125,
    },
    "training": {"precision": "fp32"},
}
ORACLE_NAMES = {
    "retrieval.conv.weight": "conv.weight",
    "retrieval.query.weight": "query.weight",
    "retrieval.query_norm.weight": "query_norm.weight",
    "retrieval.key_norm.weight": "key_norm.weight",
    "retrieval.keys.weight": "keys",
    "retrieval.core.weight": "core",
    "pre_values.weight": "pre_values.weight",
    "pre_values.table.weight": "pre_values.table",
    "table.weight": "table",
    "projection.weight": "projection.weight",
}


@dataclass(frozen=True)
class Layers:
    """Configs, and layers on the ranks that exist (inside ``run_distributed``)."""

    @staticmethod
    def config(**memory: object) -> RunConfig:
        """The small layer, with other fields in its section ``memory``."""
        return resolve([("base", SECTIONS), ("test", {"memory": memory})])

    @staticmethod
    def build(
        config: RunConfig,
        *,
        sequence_parallel: bool = False,
        tp_ranks: int = 1,
        loss_scale: float = 1.0,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        partition: PartitionName = PartitionName.REPLICATED,
    ) -> "MemoryLayer":
        """A layer whose weights are drawn by its rules, whole tables first, so that each shard gets its part.

        Args:
            config: The run.
            sequence_parallel: The layer is given this rank's share of the tokens.
            tp_ranks: All ranks, or 1.
            loss_scale: Of the auxiliary loss.
            seed: Of the weights.
            dtype: Of the parameters; what the config says if None. With float64 the layer computes in float64.
            partition: Replicated on each rank, or split over all ranks.
        """
        from ultramem_megatron.memory.layer import LayerPlace
        from ultramem_megatron.memory.token_share import TokenShare
        from ultramem_megatron.memory.variants.composition import table_shape
        from ultramem_megatron.memory.variants.registry import VARIANTS
        from ultramem_megatron.model.transformer_config import parameter_dtype
        from ultramem_megatron.parallel.channel import Channel
        from ultramem_megatron.parallel.partition.registry import PARTITIONS

        alone, _ = dist.new_subgroups(1)
        assert tp_ranks in (1, dist.get_world_size())
        tp = alone if tp_ranks == 1 else dist.group.WORLD
        assert alone is not None and tp is not None
        place = LayerPlace(
            share=TokenShare(tp, sequence_parallel),
            device=torch.device("cpu"),
            dp_cp=alone,
            mem_dp=alone,
            dtype=parameter_dtype(config) if dtype is None else dtype,
            loss_scale=loss_scale,
        )
        mem = alone if partition is PartitionName.REPLICATED else dist.group.WORLD
        assert mem is not None
        split = PARTITIONS[partition](table_shape(config), Channel(mem))
        layer = VARIANTS[config.memory.variant](config, place, split)
        draw_weights(layer, torch.Generator().manual_seed(seed))
        layer.begin_step()
        return layer

    @staticmethod
    def oracle_weights(layer: "MemoryLayer") -> dict[str, Tensor]:
        """Copies in float64 that require gradients, by the oracle's names, in the order of the parameters."""
        weights = {ORACLE_NAMES[name]: parameter.detach().double() for name, parameter in layer.named_parameters()}
        return {name: weight.clone().requires_grad_() for name, weight in weights.items()}

    @staticmethod
    def bijection(config: RunConfig) -> "SlotShuffle | PlainSlots":
        """Slot -> (row, block), as a layer of ``config`` has it."""
        from ultramem_megatron.memory.value_expansion import PlainSlots, SlotShuffle

        memory = config.memory
        return (
            SlotShuffle(memory.grid_side, memory.num_rows, memory.shuffle_seed)
            if memory.expansion > 1
            else PlainSlots()
        )

    @classmethod
    def oracle(cls, config: RunConfig, weights: dict[str, Tensor], x: Tensor) -> ReferenceOutput:
        """What the oracle computes from these weights, with singular vectors of its own and the layer's bijection."""
        u, t = leading_singular_vectors(weights["core"]) if "core" in weights else (None, None)
        return reference_memory_layer(config.memory, weights, x, slot_to_address=cls.bijection(config), u=u, t=t)

    @staticmethod
    def watched(layer: "MemoryLayer", x: Tensor) -> tuple[Tensor, Any]:
        """The output, and the picks with the scores that weighed the rows (pre-values included)."""
        seen: list[Any] = []
        look_up = layer.table.look_up

        def watch(picks: Any) -> Any:
            seen.append(picks)
            return look_up(picks)

        layer.table.look_up = watch  # type: ignore[method-assign]
        output = layer(x)
        layer.table.look_up = look_up  # type: ignore[method-assign]
        (picks,) = seen
        return output, picks


@pytest.fixture
def layers(megatron: ModuleType) -> Layers:
    """Builders of layers; megatron-core is imported."""
    return Layers()

"""Memory layers of small odd sizes, as the registry builds them, and their weights in the names of the oracle."""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.load import resolve
from ultramem_megatron.config.run import RunConfig

if TYPE_CHECKING:  # importing a layer imports megatron-core
    from ultramem_megatron.memory.layer import MemoryLayer

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
    "table.weight": "table",
    "projection.weight": "projection.weight",
}


@dataclass(frozen=True)
class RandomDraws:
    """``Draws`` from a generator: a test needs no layout-free numbers."""

    shape: tuple[int, ...]
    generator: torch.Generator

    def normal(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator)

    def uniform(self) -> Tensor:
        return torch.rand(self.shape, generator=self.generator)


@dataclass(frozen=True)
class Layers:
    """Configs, and layers on the ranks that exist (inside ``run_distributed``)."""

    @staticmethod
    def config(**memory: object) -> RunConfig:
        """The small layer, with other fields in its section ``memory``."""
        return resolve([("base", SECTIONS), ("test", {"memory": memory})])

    @staticmethod
    def build(
        config: RunConfig, *, sequence_parallel: bool = False, tp_ranks: int = 1, loss_scale: float = 1.0, seed: int = 0
    ) -> "MemoryLayer":
        """A layer with a replicated table on the first ``tp_ranks`` ranks, its weights drawn by its rules."""
        from ultramem_megatron.memory.layer import LayerPlace
        from ultramem_megatron.memory.token_share import TokenShare
        from ultramem_megatron.memory.variants.registry import VARIANTS
        from ultramem_megatron.model.transformer_config import parameter_dtype
        from ultramem_megatron.parallel.channel import Channel
        from ultramem_megatron.parallel.partition.replicated import Replicated

        alone, _ = dist.new_subgroups(1)
        assert tp_ranks in (1, dist.get_world_size())
        tp = alone if tp_ranks == 1 else dist.group.WORLD
        assert alone is not None and tp is not None
        variant = VARIANTS[config.memory.variant]
        place = LayerPlace(
            share=TokenShare(tp, sequence_parallel),
            device=torch.device("cpu"),
            dp_cp=alone,
            mem_dp=alone,
            dtype=parameter_dtype(config),
            loss_scale=loss_scale,
        )
        layer = variant.build(config, place, Replicated(variant.table_shape(config), Channel(alone)))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.copy_(layer.rules[name](RandomDraws(tuple(parameter.shape), generator)))
        layer.begin_step()
        return layer

    @staticmethod
    def oracle_weights(layer: "MemoryLayer") -> dict[str, Tensor]:
        """Copies in float64 that require gradients, by the oracle's names and in its shapes."""
        weights = {ORACLE_NAMES[name]: parameter.detach().double() for name, parameter in layer.named_parameters()}
        if "core" not in weights:
            weights["keys"] = weights["keys"].squeeze(3)  # product keys have no Tucker ranks
        return {name: weight.requires_grad_() for name, weight in weights.items()}


@pytest.fixture
def layers(megatron: ModuleType) -> Layers:
    """Builders of layers; megatron-core is imported."""
    return Layers()

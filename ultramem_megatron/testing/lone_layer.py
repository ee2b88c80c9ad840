"""A memory layer by itself, with weights drawn by its rules from one generator: for tests and benchmarks of layers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.run import RunConfig

if TYPE_CHECKING:  # importing a layer imports megatron-core
    from ultramem_megatron.memory.layer import MemoryLayer


@dataclass(slots=True)
class SeededDraws:
    """``Draws`` from a generator on the CPU: the same numbers for every device, of no use for a split layout."""

    shape: tuple[int, ...]
    generator: torch.Generator

    def normal(self) -> Tensor:
        """Standard normal."""
        return torch.randn(self.shape, generator=self.generator)

    def uniform(self) -> Tensor:
        """In [0, 1)."""
        return torch.rand(self.shape, generator=self.generator)


def build_lone_layer(config: RunConfig) -> "MemoryLayer":
    """The layer with an unsplit table on the CPU; its weights are not set. The world is one process."""
    from ultramem_megatron.memory.layer import LayerPlace
    from ultramem_megatron.memory.token_share import TokenShare
    from ultramem_megatron.memory.variants.composition import table_shape
    from ultramem_megatron.memory.variants.registry import VARIANTS
    from ultramem_megatron.model.transformer_config import parameter_dtype
    from ultramem_megatron.parallel.channel import Channel
    from ultramem_megatron.parallel.partition.replicated import Replicated

    alone = dist.group.WORLD
    assert alone is not None
    place = LayerPlace(
        share=TokenShare(alone, False),
        device=torch.device("cpu"),
        dp_cp=alone,
        mem_dp=alone,
        dtype=parameter_dtype(config),
        loss_scale=1.0,
    )
    return VARIANTS[config.memory.variant](config, place, Replicated(table_shape(config), Channel(alone)))


@torch.no_grad()
def draw_weights(layer: "MemoryLayer", generator: torch.Generator) -> None:
    """Draw each parameter by its rule; of a table, the whole, and keep this rank's shard."""
    tables = {id(table.weight): table for table in layer.tables}
    for name, parameter in layer.named_parameters():
        table = tables.get(id(parameter))
        if table is None:
            parameter.copy_(layer.rules[name](SeededDraws(tuple(parameter.shape), generator)))
            continue
        whole, shard = table.partition.table, table.shard
        drawn = layer.rules[name](SeededDraws((whole.num_rows, whole.value_dim), generator))
        parameter.copy_(drawn[shard.rows.start : shard.rows.stop, shard.columns.start : shard.columns.stop])


@torch.no_grad()
def round_weights(layer: "MemoryLayer") -> None:
    """To numbers that bf16 can hold, so that layers of both precisions have the same."""
    for parameter in layer.parameters():
        parameter.copy_(parameter.bfloat16())


def give_main_grad(layer: "MemoryLayer") -> Tensor:
    """What DDP does: the table's gradient has a place of its own, in fp32."""
    weight = layer.table.weight
    weight.main_grad = torch.zeros(weight.shape, device=weight.device)  # type: ignore[attr-defined]
    return weight.main_grad  # type: ignore[attr-defined]

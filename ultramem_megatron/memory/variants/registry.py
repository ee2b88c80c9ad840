"""Every memory variant, by the name that the config uses."""

from collections.abc import Callable
from dataclasses import dataclass

from ultramem_megatron.config.memory import VariantName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.memory.layer import LayerPlace, MemoryLayer
from ultramem_megatron.memory.variants import pkm, ultramem
from ultramem_megatron.parallel.partition.base import TableShape, ValuePartition


@dataclass(frozen=True, slots=True)
class Variant:
    """How a variant's tables look and how its layer is built."""

    table_shape: Callable[[RunConfig], TableShape]
    build: Callable[[RunConfig, LayerPlace, ValuePartition], MemoryLayer]


VARIANTS: dict[VariantName, Variant] = {
    VariantName.PKM: Variant(pkm.table_shape, pkm.build),
    VariantName.ULTRAMEM: Variant(ultramem.table_shape, ultramem.build),
}

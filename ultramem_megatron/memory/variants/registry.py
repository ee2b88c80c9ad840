"""Every memory variant, by the name that the config uses: how its layer is built."""

from collections.abc import Callable

from ultramem_megatron.config.memory import VariantName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.memory.layer import LayerPlace, MemoryLayer
from ultramem_megatron.memory.variants import pkm, ultramem, ultramem_v2
from ultramem_megatron.parallel.partition.base import ValuePartition

VARIANTS: dict[VariantName, Callable[[RunConfig, LayerPlace, ValuePartition], MemoryLayer]] = {
    VariantName.PKM: pkm.build,
    VariantName.ULTRAMEM: ultramem.build,
    VariantName.ULTRAMEM_V2: ultramem_v2.build,
}

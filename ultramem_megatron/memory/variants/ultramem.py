"""UltraMem: TDQKR, implicit value expansion, multi-core scoring, shared and convolved queries (paper section 2)."""

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.memory.layer import LayerPlace, MemoryLayer
from ultramem_megatron.memory.normal_scores import expected_best_products
from ultramem_megatron.memory.tucker import TuckerRetrieval
from ultramem_megatron.memory.variants.composition import compose, initial_rules
from ultramem_megatron.parallel.partition.base import ValuePartition
from ultramem_megatron.planning.memory_shape import memory_shape


def build(config: RunConfig, place: LayerPlace, partition: ValuePartition) -> MemoryLayer:
    """One layer; its parameters are not set yet (``rules`` says how)."""
    shape = memory_shape(config)
    retrieval = TuckerRetrieval(shape, place.share, place.dtype, softmax=config.memory.softmax)
    expected = expected_best_products(shape.grid_side, shape.candidates, shape.top_m)
    return compose(config, place, partition, retrieval, initial_rules(config, expected, degree=2))

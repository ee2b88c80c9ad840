"""PKM: product keys with additive scores (paper eq. 1-3), the start of the paper's ablation.

As it was published: ``memory.softmax=true``, one layer, no norms, no expansion, each head its own query. Table 2
changes these one by one, and each is a switch here too.
"""

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.memory.layer import LayerPlace, MemoryLayer
from ultramem_megatron.memory.normal_scores import expected_best_sums
from ultramem_megatron.memory.product_keys import AdditiveRetrieval
from ultramem_megatron.memory.variants.composition import compose, initial_rules
from ultramem_megatron.parallel.partition.base import ValuePartition
from ultramem_megatron.planning.memory_shape import memory_shape


def build(config: RunConfig, place: LayerPlace, partition: ValuePartition) -> MemoryLayer:
    """One layer; its parameters are not set yet (``rules`` says how)."""
    shape = memory_shape(config)
    retrieval = AdditiveRetrieval(shape, place.share, place.dtype, softmax=config.memory.softmax)
    expected = expected_best_sums(shape.grid_side, shape.candidates, shape.top_m)
    return compose(config, place, partition, retrieval, initial_rules(config, expected, degree=1))

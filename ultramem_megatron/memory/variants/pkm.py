"""PKM: product keys with additive scores and softmax, the start of the paper's ablation (eq. 1-3, Table 2).

A projection follows the table only where the value dimension is not the hidden width.
"""

import math

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.memory.initial_rules import InitialRule, normal
from ultramem_megatron.memory.layer import LayerPlace, MemoryLayer, OutputProjection
from ultramem_megatron.memory.product_keys import AdditiveRetrieval
from ultramem_megatron.memory.value_expansion import PlainSlots
from ultramem_megatron.memory.value_table import ValueTable
from ultramem_megatron.parallel.partition.base import TableShape, ValuePartition


def table_shape(config: RunConfig) -> TableShape:
    """The logical value table."""
    return TableShape(num_rows=config.memory.num_rows, value_dim=config.memory.value_dim)


def build(config: RunConfig, place: LayerPlace, partition: ValuePartition) -> MemoryLayer:
    """One layer; its parameters are not set yet (``rules`` says how)."""
    memory, hidden = config.memory, config.model.hidden
    projected = memory.value_dim != hidden
    return MemoryLayer(
        place=place,
        retrieval=AdditiveRetrieval(
            hidden, memory.heads, memory.keys_per_side, memory.key_dim, memory.top_m, place.dtype
        ),
        addresses=PlainSlots(),
        table=ValueTable(partition, place.mem_dp, place.dtype, place.device),
        projection=OutputProjection(memory.value_dim, hidden, place.dtype) if projected else None,
        auxiliary=(0.0, 0.0),
        rules=_rules(config, projected),
    )


def _rules(config: RunConfig, projected: bool) -> dict[str, InitialRule]:
    memory, hidden = config.memory, config.model.hidden
    rules = {
        "retrieval.query.weight": normal(1 / math.sqrt(hidden)),
        "retrieval.keys.weight": normal(1 / math.sqrt(memory.key_dim)),
        "table.weight": normal(1 / math.sqrt(memory.value_dim)),
    }
    if projected:
        rules["projection.weight"] = normal(1 / math.sqrt(memory.value_dim))
    return rules

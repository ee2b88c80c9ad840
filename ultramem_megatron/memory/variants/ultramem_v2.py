"""UltraMemV2 (arXiv 2508.18756): pre-values, and one projection for all virtual blocks.

The rest of that paper's design is in the switches: memory in every block (``spans``), a query for each Tucker rank
(``key_layout = query_per_rank``), capped candidates (``side_top_m``), no core penalty (``auxiliary_weight = 0``).
"""

import math
from statistics import fmean, pvariance

from ultramem_megatron.config.memory import Initialization
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.memory.initial_rules import InitialRule, normal, unit_core
from ultramem_megatron.memory.layer import LayerPlace, MemoryLayer
from ultramem_megatron.memory.normal_scores import expected_best_products
from ultramem_megatron.memory.pre_values import PreValues
from ultramem_megatron.memory.tucker import TuckerRetrieval
from ultramem_megatron.memory.value_table import ValueTable
from ultramem_megatron.memory.variants.composition import compose, initial_rules, retrieval_rules, score_gain
from ultramem_megatron.parallel.partition.base import TableShape, ValuePartition
from ultramem_megatron.planning.memory_shape import MemoryShape, memory_shape


def build(config: RunConfig, place: LayerPlace, partition: ValuePartition) -> MemoryLayer:
    """One layer; its parameters are not set yet (``rules`` says how)."""
    shape = memory_shape(config)
    retrieval = TuckerRetrieval(shape, place.share, place.dtype, softmax=config.memory.softmax)
    pre_shape = TableShape(num_rows=shape.num_rows, value_dim=shape.pre_value_dim)
    pre_table = ValueTable(type(partition)(pre_shape, partition.channel), place.mem_dp, place.dtype, place.device)
    pre_values = PreValues(shape.hidden, pre_table, place.dtype)
    return compose(config, place, partition, retrieval, _rules(config, shape), pre_values)


def _rules(config: RunConfig, shape: MemoryShape) -> dict[str, InitialRule]:
    """Every linear layer N(0, 2 / (5 D)), mean score 1, values and pre-values of one size (appendix A)."""
    picks = expected_best_products(shape.grid_side, shape.candidates, shape.top_m)
    if config.memory.initialization is Initialization.PLAIN:
        return {
            **initial_rules(config, picks, degree=2),
            "pre_values.weight": normal(1 / math.sqrt(shape.hidden)),
            "pre_values.table.weight": normal(1 / math.sqrt(shape.pre_value_dim)),
        }
    linear = math.sqrt(2 / (5 * shape.hidden))
    table = normal(table_std(config, shape, pvariance(picks) / fmean(picks) ** 2))
    gain = score_gain(config, picks, degree=2)
    return {
        **retrieval_rules(shape, query_std=linear, gain=gain, core=unit_core()),
        "pre_values.weight": normal(linear),
        "pre_values.table.weight": table,
        "table.weight": table,
        "projection.weight": normal(linear),
    }


def table_std(config: RunConfig, shape: MemoryShape, score_variance: float) -> float:
    """Standard deviation of values and pre-values, at which memory and MLP add the same variance.

    Memory adds 0.16 (1 + s^2) v^4 Dp K Dv / D and the MLP 0.064 F / (2 L D), with v the one sought, s^2 the variance
    of the scores around their mean of 1, F the inner width of the MLP, K the picks of a token (appendix A, eq. 22
    and 25). The text of eq. 22 that we have lacks the MLP's 1 / D, which its own reckoning has: linear layers of
    variance 2 / (5 D) take 0.4 at each of three products. Softmax weights average 1 / m instead of 1, and meet the
    product of both tables.
    """
    mlp = 0.064 * config.model.ffn_hidden / (2 * config.model.layers)
    widths = shape.pre_value_dim * shape.picks * shape.value_dim
    mean_score = 1 / shape.top_m if config.memory.softmax else 1
    return (mlp / (0.16 * (1 + score_variance) * mean_score**2 * widths)) ** 0.25

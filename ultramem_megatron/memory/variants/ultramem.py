"""UltraMem: TDQKR, implicit value expansion, multi-core scoring, shared and convolved queries (paper section 2)."""

import math

from ultramem_megatron.config.memory import ScoreGain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.memory.initial_rules import InitialRule, constant, last_tap, normal, unit_core
from ultramem_megatron.memory.layer import LayerPlace, MemoryLayer, OutputProjection
from ultramem_megatron.memory.normal_scores import expected_pick_mean, expected_top_mean, value_std
from ultramem_megatron.memory.tucker import TuckerRetrieval
from ultramem_megatron.memory.value_expansion import SlotShuffle
from ultramem_megatron.memory.value_table import ValueTable
from ultramem_megatron.parallel.partition.base import TableShape, ValuePartition


def table_shape(config: RunConfig) -> TableShape:
    """The logical value table."""
    memory = config.memory
    return TableShape(num_rows=memory.num_rows, value_dim=memory.value_dim, blocks=memory.expansion, cores=memory.cores)


def build(config: RunConfig, place: LayerPlace, partition: ValuePartition) -> MemoryLayer:
    """One layer; its parameters are not set yet (``rules`` says how)."""
    memory, hidden = config.memory, config.model.hidden
    retrieval = TuckerRetrieval(
        hidden=hidden,
        heads=memory.heads,
        heads_per_query=memory.heads_per_query,
        side=memory.grid_side,
        key_dim=memory.key_dim,
        rank=memory.tucker_rank,
        cores=memory.cores,
        top_m=memory.top_m,
        conv_kernel=memory.query_conv_kernel,
        normalize=memory.normalize_keys,
        share=place.share,
        dtype=place.dtype,
    )
    return MemoryLayer(
        place=place,
        retrieval=retrieval,
        addresses=SlotShuffle(memory.grid_side, memory.num_rows, memory.shuffle_seed),
        table=ValueTable(partition, place.mem_dp, place.dtype, place.device),
        projection=OutputProjection(memory.expansion * memory.value_dim, hidden, place.dtype),
        auxiliary=(memory.auxiliary_weight, memory.auxiliary_margin),
        rules=_rules(config),
    )


def _rules(config: RunConfig) -> dict[str, InitialRule]:
    """The paper's improved initialisation: mean score 1, output variance 1 / (2 L) (section 4).

    Row and column scores each carry the gain 1 / sqrt(E), with E the mean that the picks' scores would have without
    it (``memory.score_gain`` says how it is reckoned).
    """
    memory, model = config.memory, config.model
    rank_width = memory.key_dim // memory.tucker_rank
    mean_of = {ScoreGain.PRODUCTS: expected_pick_mean, ScoreGain.ONE_SIDE: expected_top_mean}[memory.score_gain]
    score_gain = 1 / math.sqrt(mean_of(memory.grid_side, memory.top_m))
    # without a norm that could carry it, the gain is the queries' own
    query_gain = 1.0 if memory.normalize_keys else score_gain
    rules = {
        "retrieval.query.weight": normal(query_gain / math.sqrt(model.hidden)),
        "retrieval.keys.weight": normal(1 / math.sqrt(rank_width)),
        "retrieval.core.weight": unit_core(),
        "table.weight": normal(value_std(memory.expansion, memory.picks, model.layers)),
        "projection.weight": normal(1 / math.sqrt(memory.expansion * memory.value_dim)),
    }
    if memory.query_conv_kernel:
        rules["retrieval.conv.weight"] = last_tap()
    if memory.normalize_keys:
        rules["retrieval.query_norm.weight"] = constant(score_gain)
        rules["retrieval.key_norm.weight"] = constant(1 / math.sqrt(rank_width))
    return rules

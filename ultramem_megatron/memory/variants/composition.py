"""What the variants have in common: the parts around a retrieval, and how those parts start."""

import math
from statistics import fmean

from ultramem_megatron.config.memory import Initialization, ScoreGain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.memory.initial_rules import InitialRule, constant, last_tap, normal, uniform, unit_core
from ultramem_megatron.memory.layer import LayerPlace, MemoryLayer, OutputProjection
from ultramem_megatron.memory.normal_scores import expected_top_mean, value_std
from ultramem_megatron.memory.pre_values import PreValues
from ultramem_megatron.memory.product_keys import ProductKeyRetrieval
from ultramem_megatron.memory.value_expansion import OneBlock, PlainSlots, SlotShuffle
from ultramem_megatron.memory.value_table import ValueTable
from ultramem_megatron.parallel.partition.base import TableShape, ValuePartition
from ultramem_megatron.planning.memory_shape import MemoryShape, memory_shape


def table_shape(config: RunConfig) -> TableShape:
    """The logical value table."""
    shape = memory_shape(config)
    return TableShape(num_rows=shape.num_rows, value_dim=shape.value_dim, blocks=shape.blocks, cores=shape.cores)


def compose(
    config: RunConfig,
    place: LayerPlace,
    partition: ValuePartition,
    retrieval: ProductKeyRetrieval,
    rules: dict[str, InitialRule],
    pre_values: PreValues | None = None,
) -> MemoryLayer:
    """A layer around ``retrieval``; its parameters are not set yet (``rules`` says how)."""
    memory, shape = config.memory, retrieval.shape
    projection = OutputProjection(shape.blocks * shape.value_dim, shape.hidden, place.dtype)
    return MemoryLayer(
        place=place,
        retrieval=retrieval,
        addresses=_addresses(shape, memory.shuffle_seed),
        table=ValueTable(partition, place.mem_dp, place.dtype, place.device),
        projection=projection if shape.projected else None,
        pre_values=pre_values,
        auxiliary=(memory.auxiliary_weight, memory.auxiliary_margin) if shape.tucker_rank else (0.0, 0.0),
        dropout=memory.dropout,
        rules=rules,
    )


def _addresses(shape: MemoryShape, seed: int) -> PlainSlots | SlotShuffle | OneBlock:
    if shape.expansion == 1:
        return PlainSlots()
    shuffle = SlotShuffle(shape.grid_side, shape.num_rows, seed)
    return shuffle if shape.blocks == shape.expansion else OneBlock(shuffle)


def initial_rules(config: RunConfig, expected_picks: list[float], *, degree: int) -> dict[str, InitialRule]:
    """How the parts of a layer start, by ``memory.initialization``.

    Args:
        config: The run.
        expected_picks: What the scores of a head's picks would be if row and column scores were standard normal.
        degree: How often the gain of a side enters a score: 2 for products, 1 for sums.
    """
    match config.memory.initialization:
        case Initialization.PLAIN:
            return _plain_rules(memory_shape(config))
        case Initialization.IMPROVED:
            return _improved_rules(config, expected_picks, degree)


def retrieval_rules(shape: MemoryShape, *, query_std: float, gain: float, core: InitialRule) -> dict[str, InitialRule]:
    """Row and column scores with the standard deviation ``gain``, whether there are norms or not."""
    rules = {
        # without a norm that could carry it, the gain is the queries' own
        "retrieval.query.weight": normal(query_std if shape.normalize else gain / math.sqrt(shape.hidden)),
        "retrieval.keys.weight": normal(1 / math.sqrt(shape.rank_width)),
    }
    if shape.tucker_rank:
        rules["retrieval.core.weight"] = core
    if shape.conv_kernel:
        rules["retrieval.conv.weight"] = last_tap()
    if shape.normalize:
        rules["retrieval.query_norm.weight"] = constant(gain)
        rules["retrieval.key_norm.weight"] = constant(1 / math.sqrt(shape.rank_width))
    return rules


def _plain_rules(shape: MemoryShape) -> dict[str, InitialRule]:
    """As product-key memories start: values N(0, 1 / Dv), gains of 1; cores U(0, 1) as in the published code."""
    rules = retrieval_rules(shape, query_std=1 / math.sqrt(shape.hidden), gain=1.0, core=uniform())
    return rules | _output_rules(shape, 1 / math.sqrt(shape.value_dim))


def _improved_rules(config: RunConfig, expected_picks: list[float], degree: int) -> dict[str, InitialRule]:
    """Mean score 1 and output variance 1 / (2 L) (paper section 4).

    Row and column scores carry the gain that divides out the mean that the picks' scores would have without it
    (``memory.score_gain`` says how that mean is reckoned).
    """
    shape = memory_shape(config)
    # the softmax weights of a head sum to 1, whatever the gain
    std = value_std(shape.expansion, shape.picks, config.model.layers) * (shape.top_m if config.memory.softmax else 1)
    gain = score_gain(config, expected_picks, degree)
    rules = retrieval_rules(shape, query_std=1 / math.sqrt(shape.hidden), gain=gain, core=unit_core())
    return rules | _output_rules(shape, std)


def score_gain(config: RunConfig, expected_picks: list[float], degree: int) -> float:
    """The gain of a side at which the picks' scores average 1; arguments as in ``initial_rules``."""
    memory = config.memory
    if memory.softmax:
        return 1.0
    if memory.score_gain is ScoreGain.ONE_SIDE:
        return expected_top_mean(memory.grid_side, memory.candidates) ** (-1 / degree)
    return fmean(expected_picks) ** (-1 / degree)


def _output_rules(shape: MemoryShape, value_std: float) -> dict[str, InitialRule]:
    rules = {"table.weight": normal(value_std)}
    if shape.projected:
        rules["projection.weight"] = normal(1 / math.sqrt(shape.blocks * shape.value_dim))
    return rules

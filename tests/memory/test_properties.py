"""Any layer that a config can describe equals the oracle, and has the parameters that the planner counts."""

from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ultramem_megatron.config.memory import KeyLayout, VariantName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.memory_shape import memory_shape
from ultramem_megatron.planning.model_size import memory_dense_parameters, memory_norm_parameters, table_parameters
from ultramem_megatron.testing.budget import budget
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tolerances import assert_agrees

Layers = Any  # the fixture's class lives in conftest.py
HIDDEN = 16  # as in conftest.py
MARGIN = 1e-5
"""Between a score that is kept and one that is not. The singular vectors are kept in fp32, so some 1e-7 matters."""

FEW = settings(
    max_examples=budget(15, 300),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def memory_sections(draw: st.DrawFn) -> dict[str, object]:
    """Fields of the section ``memory``: any variant, any switch, small sizes."""
    variant = draw(st.sampled_from([v for v in VariantName if v is not VariantName.NONE]))
    key_layout = draw(st.sampled_from(KeyLayout))
    rank, cores, keys = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(2, 5))
    heads_per_query = draw(st.integers(1, 2))
    expansion = draw(st.sampled_from([1, 4, 9]))
    side_top_m = draw(st.integers(0, keys))
    slots = expansion * keys**2
    most = min(side_top_m**2, slots - 1) if side_top_m else keys
    return {
        "variant": variant,
        "keys_per_side": keys,
        "side_top_m": side_top_m,
        "top_m": draw(st.integers(1, min(most, 6))),
        "heads_per_query": heads_per_query,
        "heads": heads_per_query * draw(st.integers(1, 2)),
        "key_layout": key_layout,
        "key_dim": rank * draw(st.integers(2, 3)) if key_layout is KeyLayout.SPLIT else draw(st.integers(2, 5)),
        "tucker_rank": rank,
        "cores": cores,
        "value_dim": draw(st.sampled_from([cores, 2 * cores, HIDDEN - HIDDEN % cores])),
        "pre_value_dim": draw(st.integers(1, 4)) if variant is VariantName.ULTRAMEM_V2 else 0,
        "expansion": expansion,
        "query_conv_kernel": draw(st.integers(0, 3)),
        "normalize_keys": draw(st.booleans()),
        "softmax": draw(st.booleans()),
        "initialization": draw(st.sampled_from(["improved", "plain"])),
        "shuffle_seed": draw(st.integers(0, 2**32)),
        "auxiliary_weight": 0.0,
    }


def equals_oracle(layers: Layers, config: RunConfig, positions: int, sequences: int, seed: int) -> None:
    """Slots, scores, output and the gradients of the input and the tables, in float64."""
    layer = layers.build(config, dtype=torch.float64, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x, cotangent = torch.randn(2, positions, sequences, HIDDEN, dtype=torch.float64, generator=generator)
    weights, wide = layers.oracle_weights(layer), x.clone().requires_grad_()
    reference = layers.oracle(config, weights, wide)
    assume(reference.margin > MARGIN)
    x.requires_grad_()
    output, picks = layers.watched(layer, x)
    kwargs = {"computed_in": torch.float64, "summed_terms": 256}
    assert torch.equal(picks.rows_TK.long(), reference.rows)
    assert torch.equal(picks.blocks_TK.long(), reference.blocks)
    assert_agrees(picks.scores_hTK, reference.scores, **kwargs)
    assert_agrees(output, reference.output, **kwargs)
    output.backward(cotangent)
    reference.output.backward(cotangent)
    assert_agrees(layer.table.weight.grad, weights["table"].grad, **kwargs)
    if layer.pre_values is not None:
        assert_agrees(layer.pre_values.table.weight.grad, weights["pre_values.table"].grad, **kwargs)
    assert_agrees(x.grad, wide.grad, **kwargs)


def test_a_layer_equals_the_oracle(layers: Layers) -> None:
    @FEW
    @given(memory=memory_sections(), positions=st.integers(1, 4), sequences=st.integers(1, 2), seed=st.integers(0, 99))
    def check(memory: dict[str, object], positions: int, sequences: int, seed: int) -> None:
        equals_oracle(layers, layers.config(**memory), positions, sequences, seed)

    run_distributed(1, check)


def test_a_layer_has_the_parameters_that_the_planner_counts(layers: Layers) -> None:
    @FEW
    @given(memory=memory_sections())
    def check(memory: dict[str, object]) -> None:
        config = layers.config(**memory)
        layer = layers.build(config)
        sizes = {name: parameter.numel() for name, parameter in layer.named_parameters()}
        tables = {name for name in sizes if name.endswith("table.weight")}
        norms = {name for name in sizes if "norm" in name}
        assert sum(sizes[name] for name in tables) == table_parameters(config.memory)
        assert sum(sizes[name] for name in norms) == memory_norm_parameters(config)
        dense = sum(size for name, size in sizes.items() if name not in tables | norms)
        assert dense == memory_dense_parameters(config)
        assert layer.table.partition.table.blocks == memory_shape(config).blocks

    run_distributed(1, check)

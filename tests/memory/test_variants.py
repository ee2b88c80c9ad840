"""The registry names every variant, and a variant's rules name every parameter."""

from dataclasses import replace
from typing import Any

import pytest

from ultramem_megatron.config.memory import VariantName
from ultramem_megatron.planning.model_size import memory_dense_parameters, table_parameters
from ultramem_megatron.testing.distributed import run_distributed


def test_every_variant_is_registered(layers: Any) -> None:
    from ultramem_megatron.memory.variants.registry import VARIANTS

    assert set(VARIANTS) == set(VariantName) - {VariantName.NONE}


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("ultramem", {}),
        ("ultramem", {"query_conv_kernel": 0, "normalize_keys": False, "tucker_rank": 3, "cores": 3, "expansion": 9}),
        ("pkm", {}),
        ("pkm", {"value_dim": 16}),
    ],
)
def test_parameters_are_those_the_planner_counts(layers: Any, variant: str, changes: dict[str, object]) -> None:
    from ultramem_megatron.memory.variants.registry import VARIANTS

    config = layers.config(variant=variant, **changes)

    def count() -> tuple[int, int]:
        layer = layers.build(config)
        sizes = {name: parameter.numel() for name, parameter in layer.named_parameters()}
        return sizes.pop("table.weight"), sum(sizes.values())

    assert run_distributed(1, count) == [(table_parameters(config.memory), memory_dense_parameters(config))]
    shape = VARIANTS[config.memory.variant].table_shape(config)
    assert (shape.num_rows, shape.value_dim) == (config.memory.num_rows, config.memory.value_dim)
    assert (shape.blocks, shape.cores) == (1, 1) if variant == "pkm" else (config.memory.expansion, config.memory.cores)


def test_pkm_ignores_what_only_ultramem_has(layers: Any) -> None:
    from ultramem_megatron.memory.variants.registry import VARIANTS

    config = layers.config(variant="pkm", expansion=9, cores=3)
    table_shape = VARIANTS[VariantName.PKM].table_shape
    assert table_shape(config) == table_shape(replace(config, memory=replace(config.memory, expansion=1, cores=1)))

"""The registry names every variant, and a variant's rules name every parameter."""

from typing import Any

import pytest

from ultramem_megatron.config.memory import VariantName
from ultramem_megatron.planning.memory_shape import memory_shape
from ultramem_megatron.planning.model_size import memory_dense_parameters, memory_norm_parameters, table_parameters
from ultramem_megatron.testing.distributed import run_distributed


def test_every_variant_is_registered(layers: Any) -> None:
    from ultramem_megatron.memory.variants.registry import VARIANTS

    assert set(VARIANTS) == set(VariantName) - {VariantName.NONE}


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("ultramem", {}),
        ("ultramem", {"query_conv_kernel": 0, "normalize_keys": False, "tucker_rank": 3, "cores": 3, "expansion": 9}),
        ("ultramem", {"key_layout": "full"}),
        ("ultramem", {"key_layout": "query_per_rank", "expansion": 1, "value_dim": 16}),
        ("pkm", {}),
        ("pkm", {"expansion": 1, "value_dim": 16}),
        ("pkm", {"expansion": 1, "value_dim": 16, "normalize_keys": False, "heads_per_query": 1}),
        ("ultramem_v2", {"pre_value_dim": 5}),
        ("ultramem_v2", {"pre_value_dim": 5, "value_dim": 16, "expansion": 1, "key_layout": "query_per_rank"}),
    ],
)
def test_parameters_are_those_the_planner_counts(layers: Any, variant: str, changes: dict[str, object]) -> None:
    config = layers.config(variant=variant, **changes)

    def count() -> tuple[int, int, int]:
        sizes = {name: parameter.numel() for name, parameter in layers.build(config).named_parameters()}
        tables = sum(size for name, size in sizes.items() if name.endswith("table.weight"))
        norms = sum(size for name, size in sizes.items() if "norm" in name)
        return tables, norms, sum(sizes.values()) - tables - norms

    expected = table_parameters(config.memory), memory_norm_parameters(config), memory_dense_parameters(config)
    assert run_distributed(1, count) == [expected]


@pytest.mark.parametrize(("variant", "blocks", "cores"), [("pkm", 9, 1), ("ultramem", 9, 3), ("ultramem_v2", 1, 3)])
def test_tables_know_how_they_are_read(layers: Any, variant: str, blocks: int, cores: int) -> None:
    """UltraMemV2 pools all virtual blocks into one; product keys have a single score."""
    from ultramem_megatron.memory.variants.composition import table_shape
    from ultramem_megatron.parallel.partition.base import TableShape

    pre_values = {"pre_value_dim": 5} if variant == "ultramem_v2" else {}
    config = layers.config(variant=variant, expansion=9, cores=3, **pre_values)
    assert table_shape(config) == TableShape(num_rows=49, value_dim=12, blocks=blocks, cores=cores)


def test_pkm_ignores_what_only_cores_have(layers: Any) -> None:
    config = layers.config(variant="pkm", cores=3, tucker_rank=5, key_layout="full")
    assert memory_shape(config) == memory_shape(layers.config(variant="pkm", cores=1, tucker_rank=1))


def names(layers: Any, config: Any) -> set[str]:
    return {name for name, _ in layers.build(config).named_parameters()}


def test_a_projection_is_there_unless_one_vector_is_as_wide_as_the_model(layers: Any) -> None:
    wide = {"expansion": 1, "value_dim": 16}
    cases = [
        ({"variant": "pkm", **wide}, False),
        ({"variant": "ultramem", **wide}, False),
        ({"variant": "ultramem_v2", "pre_value_dim": 5, **wide}, True),
        ({"variant": "pkm", "expansion": 1}, True),
        ({"variant": "pkm", "value_dim": 16}, True),
        ({"variant": "ultramem", "value_dim": 16}, True),
    ]
    for changes, projected in cases:
        (found,) = run_distributed(1, names, layers, layers.config(**changes))
        assert ("projection.weight" in found) is projected, changes

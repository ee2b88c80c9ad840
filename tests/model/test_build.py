"""Models as runs build them: their size, their types, and what lies on which pipeline stage."""

from typing import Any

import pytest
import torch

from ultramem_megatron.planning.model_size import count_parameters
from ultramem_megatron.testing.distributed import run_distributed


@pytest.mark.parametrize("variant", ["none", "pkm", "ultramem"])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.gated_mlp=true", "model.tie_embeddings=true"),
        ("memory.query_conv_kernel=0", "memory.normalize_keys=false", "memory.expansion=9", "memory.value_dim=16"),
    ],
    ids=["plain", "gated-and-tied", "other-memory"],
)
def test_parameters_are_as_many_as_planned(models: Any, variant: str, overrides: tuple[str, ...]) -> None:
    config = models.config(f"memory.variant={variant}", *overrides)
    counts = count_parameters(config)
    sizes = {key: weight.numel() for key, weight in models.whole_weights(1, config).items()}
    tables = sum(size for key, size in sizes.items() if key.endswith("table.weight"))
    memory = sum(size for key, size in sizes.items() if key.startswith("memory."))
    assert tables == counts.tables
    assert memory - tables == counts.memory_dense
    assert sum(sizes.values()) == counts.total_without_embedding + counts.embedding


@pytest.mark.slow
def test_splitting_makes_no_parameters(models: Any) -> None:
    config = models.config("parallelism.tensor=2", "parallelism.pipeline=2")
    counts = count_parameters(config)
    sizes = [weight.numel() for weight in models.whole_weights(4, config).values()]
    assert sum(sizes) == counts.total_without_embedding + counts.embedding


def describe(models: Any, config: Any) -> list[dict[str, Any]]:
    return [
        {
            "blocks": [layer.layer_number for layer in chunk.decoder.layers],
            "memory": [index for index, _ in chunk.memory.numbered_layers()],
            "same": chunk.memory_layers == [layer for _, layer in chunk.memory.numbered_layers()],
            "lanes": {id(layer.lane[0]) for layer in chunk.decoder.layers} == {id(chunk.memory)},
            "ends": (chunk.pre_process, chunk.post_process),
            "dtypes": {parameter.dtype for parameter in chunk.parameters()},
            "names": [name for name, _ in chunk.named_parameters() if "lane" in name],
            "scale": {layer.place.loss_scale for layer in chunk.memory_layers},
            "table": {tuple(layer.table.weight.shape) for layer in chunk.memory_layers},
        }
        for chunk in models.build(config)
    ]


def test_stages_hold_their_blocks_and_spans(models: Any) -> None:
    config = models.config("parallelism.pipeline=2", "parallelism.virtual_pipeline=2", "memory.spans=1:1/2:2/4:4")
    first, second = run_distributed(2, describe, models, config)
    assert [chunk["blocks"] for chunk in first] == [[1], [3]]
    assert [chunk["blocks"] for chunk in second] == [[2], [4]]
    assert [chunk["memory"] for chunk in first] == [[0], []]
    assert [chunk["memory"] for chunk in second] == [[1], [2]]
    assert [chunk["ends"] for chunk in first] == [(True, False), (False, False)]
    assert [chunk["ends"] for chunk in second] == [(False, False), (False, True)]
    for chunk in first + second:
        assert chunk["same"] and chunk["lanes"]
        assert chunk["names"] == [], "the lane's parameters are registered once, with the model"


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_all_parameters_have_the_runs_type(models: Any, precision: str, dtype: torch.dtype) -> None:
    ((chunk,),) = run_distributed(1, describe, models, models.config(f"training.precision={precision}"))
    assert chunk["dtypes"] == {dtype}


@pytest.mark.slow
def test_a_micro_batch_has_its_share_of_the_penalty(models: Any) -> None:
    """8 samples a step, 1 a pass: 8 passes on one rank; on 4 ranks with tensor = 2 there are 4, on 2 ranks each."""
    ((chunk,),) = run_distributed(1, describe, models, models.config())
    assert chunk["scale"] == {1 / 8}
    for (chunk,) in run_distributed(4, describe, models, models.config("parallelism.tensor=2")):
        assert chunk["scale"] == {1 / 4 / 2}


@pytest.mark.parametrize(
    ("partition", "shapes"),
    [("number_wise", [{(12, 8)}, {(13, 8)}]), ("dimension_wise", [{(25, 4)}, {(25, 4)}])],
)
def test_tables_are_split_as_planned(models: Any, partition: str, shapes: list[set[tuple[int, int]]]) -> None:
    config = models.config(f"memory.partition={partition}", "memory.parallel_size=2")
    assert [chunk["table"] for (chunk,) in run_distributed(2, describe, models, config)] == shapes

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
        ("model.experts=5", "model.expert_ffn_hidden=12", "model.gated_mlp=true"),
    ],
    ids=["plain", "gated-and-tied", "other-memory", "experts"],
)
def test_parameters_are_as_many_as_planned(models: Any, variant: str, overrides: tuple[str, ...]) -> None:
    config = models.config(f"memory.variant={variant}", *overrides)
    counts = count_parameters(config)
    sizes = {key: weight.numel() for key, weight in models.whole_weights(1, config).items()}
    norms = {key for key in sizes if "norm" in key}

    def total(start: str = "", end: str = "") -> int:
        return sum(n for key, n in sizes.items() if key not in norms and key.startswith(start) and key.endswith(end))

    assert total(end="table.weight") == counts.tables
    assert total(start="memory.") - counts.tables == counts.memory_dense
    assert total(start="decoder.layers.mlp.experts.") == counts.experts
    assert total(end="router.weight") == counts.router
    assert sum(sizes[key] for key in norms) == counts.norms
    assert total() == counts.total_without_embedding + counts.embedding


@pytest.mark.parametrize("gated", [False, True], ids=["gelu", "swiglu"])
@pytest.mark.parametrize("variant", ["none", "ultramem"])
def test_experts_stand_in_place_of_each_mlp(models: Any, gated: bool, variant: str) -> None:
    config = models.config(
        f"memory.variant={variant}", f"model.gated_mlp={gated}", "model.experts=5", "model.expert_ffn_hidden=12"
    )
    sizes = {key: weight.numel() for key, weight in models.whole_weights(1, config).items()}
    # megatron-core files the norm before the MLP under the MLP's first matrix, which is not there with experts
    norm = sizes.pop("decoder.layers.mlp.linear_fc1.layer_norm_weight")
    mlps = {key.removeprefix("decoder.layers.mlp."): size for key, size in sizes.items() if ".mlp." in key}
    layers, experts, hidden, width = 4, 5, 16, 12
    assert norm == layers * hidden
    assert mlps == {
        "router.weight": layers * experts * hidden,
        "experts.experts.linear_fc1.weight": layers * experts * hidden * width * (2 if gated else 1),
        "experts.experts.linear_fc2.weight": layers * experts * hidden * width,
    }


@pytest.mark.parametrize(("variant", "own_buffers"), [("none", True), ("ultramem", False)])
def test_experts_have_the_expert_buffers_unless_tables_do(models: Any, variant: str, own_buffers: bool) -> None:
    """In every layout, one process included: a checkpoint of one must have the optimizers of all."""
    config = models.config(f"memory.variant={variant}", "model.experts=4", "model.expert_ffn_hidden=12")

    def names_in_expert_buffers() -> list[str]:
        (chunk,) = models.build(config)
        return [name for name, parameter in chunk.named_parameters() if not getattr(parameter, "allreduce", True)]

    (names,) = run_distributed(1, names_in_expert_buffers)
    assert {"experts" in name for name in names} == {own_buffers}
    assert len(names) == (4 * 4 * 2 if own_buffers else 2), "two matrices of each expert, or two tables"


@pytest.mark.slow
def test_splitting_makes_no_parameters(models: Any) -> None:
    config = models.config("parallelism.tensor=2", "parallelism.pipeline=2")
    counts = count_parameters(config)
    sizes = [weight.numel() for weight in models.whole_weights(4, config).values()]
    assert sum(sizes) == counts.total_without_embedding + counts.norms + counts.embedding


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

"""A checkpoint of another model is refused by the first setting that differs; layout and schedule may change."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.settings import check_same_model
from ultramem_megatron.errors import CheckpointError

FOLDER = Path("runs/a/checkpoints/step_00000004")


def plain(make_manifest: Callable[..., Manifest], *overrides: str) -> dict[str, object]:
    return make_manifest(0, *overrides).config


@pytest.mark.parametrize(
    ("override", "there", "here"),
    [
        ("model.layers=2", 4, 2),
        ("model.vocab_size=512", 8192, 512),
        ("model.tie_embeddings=true", False, True),
        ("memory.variant=pkm", "ultramem", "pkm"),
        ("memory.variant=none", "ultramem", "none"),
        ("memory.spans=3:4", "1:2", "3:4"),
        ("memory.value_dim=32", 64, 32),
        ("memory.shuffle_seed=1", 0, 1),
    ],
)
def test_another_model(make_manifest: Callable[..., Manifest], override: str, there: object, here: object) -> None:
    setting = override.partition("=")[0]
    with pytest.raises(CheckpointError) as refusal:
        check_same_model(FOLDER, make_manifest(4), plain(make_manifest, override))
    assert f"{FOLDER} is of another model: {setting} = {there} there and {here} here; use" in str(refusal.value)


def test_memory_layers_cannot_be_added(make_manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(CheckpointError, match=r"memory\.variant = none there and ultramem here"):
        check_same_model(FOLDER, make_manifest(4, "memory.variant=none"), plain(make_manifest))


@pytest.mark.parametrize(
    "override",
    [
        *("parallelism.tensor=2", "memory.partition=number_wise", "memory.parallel_size=4", "memory.top_m=4"),
        *("training.steps=9", "training.global_batch_size=64", "optimizer.learning_rate=1e-3", "model.seq_length=128"),
        *("checkpoint.keep=9", "data.folder=elsewhere"),
    ],
)
def test_the_same_model(make_manifest: Callable[..., Manifest], override: str) -> None:
    check_same_model(FOLDER, make_manifest(4), plain(make_manifest, override))


def test_the_sizes_of_absent_memory_layers_do_not_matter(make_manifest: Callable[..., Manifest]) -> None:
    dense = make_manifest(4, "memory.variant=none")
    check_same_model(FOLDER, dense, plain(make_manifest, "memory.variant=none", "memory.value_dim=32"))


def test_a_manifest_without_sections_is_of_another_model(make_manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(CheckpointError, match=r"memory\.variant = none there"):
        check_same_model(FOLDER, make_manifest(4).model_copy(update={"config": {}}), plain(make_manifest))

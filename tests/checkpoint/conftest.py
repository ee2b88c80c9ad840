"""Checkpoint folders without a model in them: some files, and a manifest that lists them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_megatron.checkpoint import store
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.config.load import parse_override, resolve, to_plain

WriteCheckpoint = Callable[..., Path]


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    """``make_manifest(step, *overrides)``: of a small UltraMem model."""

    def make(step: int, *overrides: str) -> Manifest:
        base = {"memory": {"variant": "ultramem", "spans": "1:2"}}
        return Manifest(
            step=step,
            consumed_samples=step * 4,
            consumed_tokens=step * 128,
            data_fingerprint="some-data",
            world_size=2,
            plan={},
            plan_hash="0",
            config=to_plain(resolve([("base", base), *map(parse_override, overrides)])),
            versions={"torch": "2"},
            files={},
        )

    return make


@pytest.fixture
def write_checkpoint(tmp_path: Path, make_manifest: Callable[..., Manifest]) -> WriteCheckpoint:
    """``write_checkpoint(step, keep=9)``: a finished checkpoint of three files under ``tmp_path``."""

    def write(step: int, keep: int = 9) -> Path:
        folder = store.begin(tmp_path, step)
        (folder / "__0_0.distcp").write_bytes(b"weights" * step)
        (folder / "__1_0.distcp").write_bytes(b"moments" * step)
        (folder / "inner").mkdir()
        (folder / "inner" / ".metadata").write_bytes(b"names")
        return store.finish(tmp_path, folder, make_manifest(step), keep)

    return write

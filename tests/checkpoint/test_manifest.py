"""A checkpoint folder is taken only with its manifest, and every file in it as long as it was written."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_megatron.checkpoint.manifest import Manifest, list_files, read_manifest
from ultramem_megatron.errors import CheckpointError


def test_what_is_written_is_read(tmp_path: Path, make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(7)
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert json.loads((tmp_path / "manifest.json").read_text())["step"] == 7


def test_every_file_is_listed_with_its_size(write_checkpoint: Callable[..., Path]) -> None:
    folder = write_checkpoint(3)
    assert read_manifest(folder).files == {"__0_0.distcp": 21, "__1_0.distcp": 21, "inner/.metadata": 5}
    assert set(list_files(folder)) == {*read_manifest(folder).files, "manifest.json"}


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 40)


def zero_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(bytes(100))


def garble_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe{}")


def forget_a_field(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    del content["step"]
    (folder / "manifest.json").write_text(json.dumps(content))


def raise_version(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, "version": 3}))


def remove_shard(folder: Path) -> None:
    (folder / "__1_0.distcp").unlink()


def cut_shard(folder: Path) -> None:
    os.truncate(folder / "__0_0.distcp", 20)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_manifest, r"step_00000003 has no manifest\.json: it was not finished; remove the folder$"),
        (cut_manifest, r"step_00000003: manifest\.json is damaged \(.*\); remove the folder$"),
        (zero_manifest, r"manifest\.json is damaged"),
        (garble_manifest, r"manifest\.json is damaged"),
        (forget_a_field, r"manifest\.json is damaged"),
        (raise_version, r"manifest\.json is damaged"),
        (remove_shard, r"is damaged: __1_0\.distcp is missing; restore it or remove the folder$"),
        (cut_shard, r"is damaged: __0_0\.distcp has 20 bytes, written were 21; restore it or remove the folder$"),
    ],
)
def test_damage_is_named(write_checkpoint: Callable[..., Path], damage: Callable[[Path], None], message: str) -> None:
    folder = write_checkpoint(3)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as refusal:
        read_manifest(folder)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)

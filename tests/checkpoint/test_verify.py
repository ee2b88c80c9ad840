"""Every byte of a checkpoint counts, and what has changed is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_megatron.checkpoint import verify as verifying
from ultramem_megatron.checkpoint.stored import ChunkReader, read_stored
from ultramem_megatron.checkpoint.verify import verify
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.files import sha256_of, write_json

TABLE = "memory.layers.0.table.weight"
WriteModel = Callable[..., Path]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def accept_hashes(folder: Path) -> None:
    """As if the files had been written so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = {name: sha256_of(folder / name) for name in manifest["sha256"]}
    write_json(folder / "manifest.json", manifest)


@pytest.mark.parametrize("block_bytes", [1, 100, 2**20])
@pytest.mark.parametrize(
    "cuts", [{}, {"row_cuts": (1, 20)}, {"column_cuts": (5,)}, {"row_cuts": (9,), "column_cuts": (5,)}]
)
def test_all_is_well(
    write_model: WriteModel, cuts: dict[str, tuple[int, ...]], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "BLOCK_BYTES", block_bytes)
    verdict = verify(write_model(**cuts))
    assert verdict.damage == []
    assert verdict.files == 4 + len(cuts.get("row_cuts", ()))
    assert verdict.tensors == 4


def test_a_flipped_byte_names_file_and_tensor(write_model: WriteModel) -> None:
    folder = write_model(row_cuts=(12, 20))
    tensor = read_stored(folder).tensors[TABLE]
    flip(folder / "__1_0.distcp", ChunkReader(tensor.chunks[1], tensor.dtype).data_start + 17)
    damage = verify(folder).damage
    assert damage[0] == "__1_0.distcp has changed since it was written"
    assert len(damage) == 2
    assert damage[1].startswith(f"the content of {TABLE} is not what was saved (digest ")


def test_every_byte_of_every_file_counts(write_model: WriteModel) -> None:
    folder = write_model(row_cuts=(12,))
    for file in sorted(folder.iterdir()):
        if file.name == "manifest.json":
            continue
        for place in range(0, file.stat().st_size, 997):
            flip(file, place)
            assert f"{file.name} has changed since it was written" in verify(folder).damage
            flip(file, place)
    assert verify(folder).damage == []


def test_a_tensor_changed_before_it_was_hashed(write_model: WriteModel) -> None:
    folder = write_model(row_cuts=(12,))
    tensor = read_stored(folder).tensors[TABLE]
    flip(folder / "__1_0.distcp", ChunkReader(tensor.chunks[1], tensor.dtype).data_start)
    accept_hashes(folder)
    (damage,) = verify(folder).damage
    assert damage.startswith(f"the content of {TABLE} is not what was saved")


def test_a_record_that_cannot_be_read_is_named(write_model: WriteModel) -> None:
    folder = write_model()
    record = read_stored(folder).tensors["decoder.norm"].chunks[0].record
    for place in range(record.start + record.length - 22, record.start + record.length):  # the archive's directory
        flip(record.file, place)
    accept_hashes(folder)
    (damage,) = verify(folder).damage
    assert damage.startswith(f"decoder.norm: {record.file}: a tensor's record cannot be read")


def test_tensors_must_be_those_of_the_manifest(write_model: WriteModel) -> None:
    folder = write_model()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["digests"]["another"] = manifest["digests"].pop("decoder.norm")
    write_json(folder / "manifest.json", manifest)
    assert verify(folder).damage == ["another is in no file", "decoder.norm is in a file, but not in the manifest"]


def test_a_missing_file_is_refused(write_model: WriteModel) -> None:
    folder = write_model(row_cuts=(12,))
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp is missing"):
        verify(folder)


def test_an_old_one_is_looked_at_as_far_as_possible(write_model: WriteModel) -> None:
    folder = write_model()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"], manifest["digests"]
    write_json(folder / "manifest.json", {**manifest, "version": 1})
    verdict = verify(folder)
    assert (verdict.files, verdict.tensors, verdict.damage) == (0, 0, [])

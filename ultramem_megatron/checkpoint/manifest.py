"""What a checkpoint says of itself, in ``manifest.json``, written last: a folder without one is incomplete."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ultramem_megatron.data.identity import DataIdentity
from ultramem_megatron.errors import CheckpointError

MANIFEST = "manifest.json"


class TensorDigest(BaseModel):
    """What a logical tensor held (``digest.py``), whatever files it was cut into."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, ...]
    dtype: str
    digest: str
    """16 hex digits."""


class Manifest(BaseModel):
    """The content of ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1, 2] = 2
    """1 had neither ``sha256`` nor ``digests``."""
    step: int
    consumed_samples: int
    consumed_tokens: int
    data_fingerprint: str
    """Of the training samples and their order; one hash of ``data``, if that is there."""
    data: DataIdentity | None = None
    """What was trained on; None: written before contents were hashed, and the fingerprint is of the order alone."""
    world_size: int
    plan: dict[str, Any]
    plan_hash: str
    config: dict[str, Any]
    versions: dict[str, str]
    """Of Python packages that wrote it."""
    files: dict[str, int]
    """Size in bytes of every other file, by path inside the folder."""
    sha256: dict[str, str] = {}
    """Of the same files."""
    digests: dict[str, TensorDigest] = {}
    """Of every logical tensor, by its name in the checkpoint."""

    recent_losses: tuple[float, ...] = ()
    """Of the last good steps, by which a bad one is told."""
    bad_steps: int = 0
    bad_in_a_row: int = 0
    skipped_samples: tuple[tuple[int, int], ...] = ()
    """Left out of the training: first sample, and the one after the last."""

    def write(self, folder: Path) -> None:
        """Put it into ``folder`` durably, after everything else."""
        path = folder / MANIFEST
        path.write_text(self.model_dump_json(indent=2) + "\n")
        sync_to_disk(path)


def read_manifest(folder: Path) -> Manifest:
    """The manifest, after every file that it lists was found with its size.

    Raises:
        CheckpointError: The folder is incomplete or damaged; names the first file that is wrong.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"checkpoint {folder} has no {MANIFEST}: it was not finished; remove the folder")
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"checkpoint {folder}: {MANIFEST} is damaged ({reason}); remove the folder") from None
    for name, size in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} is missing; restore it or remove the folder")
        if file.stat().st_size != size:
            raise CheckpointError(
                f"checkpoint {folder} is damaged: {name} has {file.stat().st_size} bytes, written were {size}; "
                "restore it or remove the folder"
            )
    return manifest


def list_files(folder: Path) -> dict[str, int]:
    """Every file below ``folder`` with its size."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def sync_to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

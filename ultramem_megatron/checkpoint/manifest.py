"""What a checkpoint says of itself, in ``manifest.json``, written last: a folder without one is incomplete."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ultramem_megatron.checkpoint.names import shown, why_not_inside
from ultramem_megatron.data.identity import DataIdentity
from ultramem_megatron.errors import CheckpointError

MANIFEST = "manifest.json"

Count = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""Without control characters: it is printed."""


class TensorDigest(BaseModel):
    """What a logical tensor held (``digest.py``), whatever files it was cut into."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Count, ...]
    dtype: Text
    digest: Text
    """16 hex digits."""


class Manifest(BaseModel):
    """The content of ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1, 2] = 2
    """1 had neither ``sha256`` nor ``digests``."""
    step: Count
    consumed_samples: Count
    consumed_tokens: Count
    data_fingerprint: Text
    """Of the training samples and their order; one hash of ``data``, if that is there."""
    data: DataIdentity | None = None
    """What was trained on; None: written before contents were hashed, and the fingerprint is of the order alone."""
    world_size: Count
    plan: dict[str, Any]
    plan_hash: Text
    config: dict[str, dict[str, Any]]
    """By section."""
    versions: dict[Text, Text]
    """Of Python packages that wrote it."""
    files: dict[str, Count]
    """Size in bytes of every other file, by path inside the folder."""
    sha256: dict[str, Text] = {}
    """Of the same files."""
    digests: dict[Text, TensorDigest] = {}
    """Of every logical tensor, by its name in the checkpoint."""

    recent_losses: tuple[float, ...] = ()
    """Of the last good steps, by which a bad one is told."""
    bad_steps: Count = 0
    bad_in_a_row: Count = 0
    skipped_samples: tuple[tuple[Count, Count], ...] = ()
    """Left out of the training: first sample, and the one after the last."""

    def write(self, folder: Path) -> None:
        """Put it into ``folder`` durably, after everything else."""
        path = folder / MANIFEST
        path.write_text(self.model_dump_json(indent=2) + "\n")
        sync_to_disk(path)


def read_manifest(folder: Path) -> Manifest:
    """The manifest, after every file that it lists was found in the folder with its size.

    Raises:
        CheckpointError: The folder is incomplete or damaged; names the first file that is wrong.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"checkpoint {folder} has no {MANIFEST}: it was not finished; remove the folder")
    if path.is_symlink():
        raise CheckpointError(f"checkpoint {folder} is damaged: {MANIFEST} is a link; restore it or remove the folder")
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError) as error:  # of pydantic too
        raise CheckpointError(
            f"checkpoint {folder}: {MANIFEST} is damaged ({_reason(error)}); remove the folder"
        ) from None
    for name, size in manifest.files.items():
        if wrong := _why_not_as_written(folder, name, size):
            raise CheckpointError(
                f"checkpoint {folder} is damaged: {shown(name)} {wrong}; restore it or remove the folder"
            )
    unhashed = set(manifest.files) ^ set(manifest.sha256)
    if unhashed and (manifest.sha256 or manifest.version > 1):
        raise CheckpointError(
            f"checkpoint {folder}: {MANIFEST} is damaged (a size or a hash of {shown(min(unhashed))} is missing); "
            "remove the folder"
        )
    return manifest


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return shown(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 300)
    return shown(str(error).partition("\n")[0], 300)


def _why_not_as_written(folder: Path, name: str, size: int) -> str:
    if reason := why_not_inside(folder, name):
        return reason
    if name == MANIFEST:
        return "lists itself"
    try:
        if not (folder / name).is_file():
            return "is missing"
        found = (folder / name).stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found == size else f"has {found} bytes, written were {size}"


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

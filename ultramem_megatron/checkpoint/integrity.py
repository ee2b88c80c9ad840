"""Is a checkpoint still what was written? Files by their SHA-256, tensors by digests free of the layout."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ultramem_megatron.checkpoint.manifest import Manifest, TensorDigest
from ultramem_megatron.checkpoint.names import shown
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.files import sha256_of


def changed_files(folder: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Those of ``names`` whose content is not what was written, or cannot be read."""
    return [name for name in names if _digest_or_reason(folder / name) != manifest.sha256[name]]


def compare_digests(folder: Path, manifest: Manifest, found: Mapping[str, TensorDigest]) -> None:
    """Every tensor of ``found`` is what was saved.

    A tensor that was loaded into another number format has other bits, and is not compared. A manifest from before
    there were digests knows none.

    Raises:
        CheckpointError: Names the tensors that differ.
    """
    unknown = [f"{name} is not in the manifest" for name in found if manifest.digests and name not in manifest.digests]
    differing = unknown + [
        f"the content of {name} is not what was saved (digest {digest.digest}, saved {saved.digest})"
        for name, digest in found.items()
        if (saved := manifest.digests.get(name)) and saved.dtype == digest.dtype and saved != digest
    ]
    if differing:
        raise CheckpointError(describe_damage(folder, differing))


def describe_damage(folder: Path, reasons: list[str]) -> str:
    """One paragraph."""
    first = "; ".join(shown(reason, 400) for reason in reasons[:5])
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return f"checkpoint {folder} is damaged: {first}{more}; restore it or remove the folder"


def _digest_or_reason(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        return str(error)

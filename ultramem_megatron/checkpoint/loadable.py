"""A look at a checkpoint before anything of it is loaded: does it hold what one of ours holds, and nothing else?

Hashes say that files are as they were written. This says that they are harmless whoever wrote them: nothing in them
runs code when it is read, and no name leads out of the folder.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ultramem_megatron.checkpoint.archive import open_archive, pickle_in
from ultramem_megatron.checkpoint.integrity import describe_damage
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.stored import METADATA, Stored, read_stored, reason_of, unpickle_plain
from ultramem_megatron.errors import CheckpointError

COMMON = "common.pt"
FORMAT = "metadata.json"
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
"""What we write; megatron-core would take another reader for another one."""


def check_loadable(folder: Path, manifest: Manifest) -> None:
    """Look at all in a checkpoint that is no tensor.

    Raises:
        CheckpointError: It holds something else; names the file and what is wrong with it.
    """
    reasons = list(why_not_loadable(folder, manifest))
    if reasons:
        raise CheckpointError(describe_damage(folder, reasons))


def why_not_loadable(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What in a checkpoint is none of ours, file by file."""
    missing = [name for name in (METADATA, COMMON, FORMAT) if name not in manifest.files]
    if missing:
        yield from (f"{name} is not in the manifest" for name in missing)
        return
    if reason := _why_not_our_format(folder / FORMAT):
        yield f"{FORMAT} {reason}"
    if reason := _why_no_settings(folder / COMMON, manifest.files[COMMON]):
        yield f"{COMMON} cannot be read ({reason})"
    try:
        stored = read_stored(folder)
    except CheckpointError as error:
        yield str(error)
    else:
        yield from _wrong_records(folder, stored, manifest)


def _wrong_records(folder: Path, stored: Stored, manifest: Manifest) -> Iterator[str]:
    unlisted = {str(record.file.relative_to(folder)) for record in stored.records} - set(manifest.files)
    yield from (f"{name} is not in the manifest" for name in sorted(unlisted))
    for name, record in stored.objects.items():
        if reason := _why_not_plain(record.file, record.start, record.length):
            yield f"{name} in {record.file.name} cannot be read ({reason})"


def _why_not_plain(file: Path, start: int, length: int) -> str:
    """Why some bytes of a file are no numbers and texts that ``torch.save`` wrote."""
    try:
        _plain(file, start, length)
    except Exception as error:  # whatever a damaged pickle or archive does
        return reason_of(error)
    return ""


def _why_no_settings(file: Path, length: int) -> str:
    """Likewise; and they must be those of an optimizer, or of its parts."""
    try:
        saved = _plain(file, 0, length)["optimizer"]
        for part in [saved] if "optimizer" in saved else saved.values():
            if not all(isinstance(group, dict) for group in part["optimizer"]["param_groups"]):
                raise ValueError("a group of parameters is none")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        return f"it holds no settings of an optimizer: {type(error).__name__} {reason_of(error)}"
    except Exception as error:  # whatever a damaged pickle or archive does
        return reason_of(error)
    return ""


def _plain(file: Path, start: int, length: int) -> Any:
    with open_archive(file, start, length) as archive:
        return unpickle_plain(pickle_in(archive)[1], "plain record")


def _why_not_our_format(path: Path) -> str:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"is damaged ({reason_of(error)})"
    if not isinstance(content, dict) or {name: content.get(name) for name in _FORMAT} != _FORMAT:
        return f"names another format than {_FORMAT['sharded_backend']}"
    return ""

"""A run's folder of checkpoints: ``step_00000120/`` ..., and ``latest``, which names the newest."""

import logging
import shutil
from pathlib import Path

from ultramem_megatron.checkpoint.manifest import Manifest, list_files, read_manifest, sync_to_disk
from ultramem_megatron.errors import CheckpointError

logger = logging.getLogger(__name__)

LATEST = "latest"
UNFINISHED = ".unfinished-"


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return root / f"step_{step:08d}"


def checkpoint_folders(root: Path) -> list[Path]:
    """All finished ones, newest first."""
    return sorted(root.glob("step_*"), reverse=True) if root.is_dir() else []


def begin(root: Path, step: int) -> Path:
    """An empty folder to write into; whatever a killed writer left is removed. For one process."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(f"{UNFINISHED}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:  # a pointer that was written but not yet put in its place
            leftover.unlink()
    folder = root / f"{UNFINISHED}{step_folder(root, step).name}"
    folder.mkdir()
    return folder


def finish(root: Path, folder: Path, manifest: Manifest, keep: int) -> Path:
    """Make a written folder the newest checkpoint: durable first, then visible, then older ones go. For one process.

    Args:
        root: The folder of checkpoints.
        folder: What ``begin`` gave, with every shard in it.
        manifest: ``files`` is filled in here.
        keep: Newest checkpoints kept.
    """
    files = list_files(folder)
    for name in files:
        sync_to_disk(folder / name)
    manifest.model_copy(update={"files": files}).write(folder)
    sync_to_disk(folder)
    target = step_folder(root, manifest.step)
    if target.exists():  # an earlier attempt at the same step, found damaged or superseded
        shutil.rmtree(target)
    folder.rename(target)
    _point_latest(root, target)
    # newer ones are damaged, or the run would have gone on from there: they must not push out good ones
    not_newer = [finished for finished in checkpoint_folders(root) if finished.name <= target.name]
    for old in not_newer[keep:]:
        shutil.rmtree(old)
    return target


def find_newest(root: Path) -> tuple[Path, Manifest] | None:
    """The newest checkpoint whose files are all there; damaged ones are named and passed over.

    Returns:
        None when there is no checkpoint at all.

    Raises:
        CheckpointError: There are checkpoints, and every one is damaged: starting over would hide the loss.
    """
    refused: list[str] = []
    for folder in checkpoint_folders(root):
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            logger.warning("%s", error)
            refused.append(str(error))
            continue
        return folder, manifest
    if refused:
        raise CheckpointError(
            f"no checkpoint of {root} is usable, the newest for this reason: {refused[0]}; to start over, use another "
            "run folder"
        )
    return None


def _point_latest(root: Path, target: Path) -> None:
    pointer = root / f"{UNFINISHED}{LATEST}"
    pointer.write_text(f"{target.name}\n")
    sync_to_disk(pointer)
    pointer.replace(root / LATEST)
    sync_to_disk(root)

"""A run's folder of checkpoints: ``step_00000120/`` ..., and ``latest``, which names the newest."""

import logging
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ultramem_megatron.checkpoint.manifest import Manifest, list_files, read_manifest, sync_to_disk
from ultramem_megatron.checkpoint.set_aside import describe_mark, is_set_aside
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.files import sha256_of

logger = logging.getLogger(__name__)

LATEST = "latest"
UNFINISHED = ".unfinished-"
VISIBLE_SECONDS = 60.0


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return root / f"step_{step:08d}"


def unfinished_folders(root: Path) -> list[Path]:
    """Checkpoints that are being written, or that a killed writer left."""
    return sorted(root.glob(f"{UNFINISHED}step_*"))


def checkpoint_folders(root: Path) -> list[Path]:
    """All finished ones, newest first."""
    return sorted(root.glob("step_*"), reverse=True) if root.is_dir() else []


def choose_folder(path: Path) -> Path:
    """The checkpoint that a user means: one itself, or the newest of a folder of checkpoints or of a run.

    As a run would, it takes one that is not set aside, if there is any.

    Raises:
        CheckpointError: There is none.
    """
    if path.name.startswith("step_") and path.is_dir():
        return path
    found = checkpoint_folders(path) or checkpoint_folders(path / "checkpoints")
    if not found:
        raise CheckpointError(
            f"{path} holds no checkpoint; name a checkpoint (.../checkpoints/step_00000100), a folder of them or a run"
        )
    return next((one for one in found if not is_set_aside(one)), found[0])


def begin(root: Path, step: int) -> Path:
    """An empty folder to write into, of a name that no other writer has. For one process."""
    root.mkdir(parents=True, exist_ok=True)
    folder = _unfinished(root, step_folder(root, step).name)
    folder.mkdir()
    return folder


def remove_leftovers(root: Path) -> None:
    """Remove what killed writers left. For one process, before it begins to write.

    A run has one set of processes. Should another still write here, it finds its folder gone, and publishes nothing.
    """
    for leftover in root.glob(f"{UNFINISHED}*"):
        discard(leftover)


def discard(path: Path) -> None:
    """Remove a checkpoint, finished or not, or a pointer that never came into its place.

    It loses its name first, so that a kill in between leaves no checkpoint with holes.
    """
    name = path.name.removeprefix(UNFINISHED).partition(".")[0]
    nameless = path.rename(_unfinished(path.parent, name))
    if nameless.is_dir():
        shutil.rmtree(nameless)
    else:
        nameless.unlink()


def _unfinished(root: Path, name: str) -> Path:
    return root / f"{UNFINISHED}{name}.{secrets.token_hex(4)}"


def wait_until_visible(folder: Path, written: dict[str, int]) -> None:
    """Return when this machine sees every file with its size: a network file system may show them late.

    Args:
        folder: What ``begin`` gave.
        written: Size of each shard, as the rank that wrote it reports.

    Raises:
        CheckpointError: A file is not there after ``VISIBLE_SECONDS``.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    while missing := [name for name, size in written.items() if list_files(folder).get(name) != size]:
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"checkpoint {folder}: {missing[0]} was written, but rank 0 does not see it whole after "
                f"{VISIBLE_SECONDS:g} s; the run folder must be one that all machines share"
            )
        time.sleep(0.5)


def finish(root: Path, folder: Path, manifest: Manifest, keep: int | None) -> Path:
    """Make a written folder the newest checkpoint: durable first, then visible, then older ones go. For one process.

    Args:
        root: The folder of checkpoints.
        folder: What ``begin`` gave, with every shard in it.
        manifest: ``files`` is filled in here, and ``sha256`` of those that it does not have yet.
        keep: Newest checkpoints kept; None keeps all.
    """
    files = list_files(folder)
    for name in files:
        sync_to_disk(folder / name)
    sha256 = {name: manifest.sha256.get(name) or sha256_of(folder / name) for name in files}
    manifest.model_copy(update={"files": files, "sha256": sha256}).write(folder)
    sync_to_disk(folder)
    target = step_folder(root, manifest.step)
    if target.exists():  # an earlier attempt at the same step, found damaged or superseded
        discard(target)
    folder.rename(target)
    _point_latest(root, target)
    if keep is not None:
        try:
            _remove_old(root, keep)
        except OSError as error:  # the save has succeeded all the same; the next one tries again
            logger.warning("an old checkpoint in %s cannot be removed: %s", root, error)
    return target


def _remove_old(root: Path, keep: int) -> None:
    """Leave the newest ``keep`` good ones. One damaged or set aside is none, and goes when older than they."""
    good = 0
    for folder in checkpoint_folders(root):
        if good >= keep:
            discard(folder)
        elif _is_good(folder):
            good += 1


def _is_good(folder: Path) -> bool:
    if is_set_aside(folder):
        return False
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True


def find_newest(root: Path, damaged: Mapping[Path, str] = MappingProxyType({})) -> tuple[Path, Manifest] | None:
    """The newest checkpoint whose files are all there; those damaged or set aside are named and passed over.

    Args:
        root: The folder of checkpoints.
        damaged: Checkpoints that a closer look has shown to be damaged, and was told about, with the reason.

    Returns:
        None when there is no checkpoint at all.

    Raises:
        CheckpointError: There are checkpoints, and none is usable: starting over would hide the loss.
    """
    refused: list[str] = []
    for folder in checkpoint_folders(root):
        if folder in damaged:
            refused.append(damaged[folder])
            continue
        try:
            if is_set_aside(folder):
                raise CheckpointError(describe_mark(folder))
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
    pointer = _unfinished(root, LATEST)
    pointer.write_text(f"{target.name}\n")
    sync_to_disk(pointer)
    pointer.replace(root / LATEST)
    sync_to_disk(root)

"""When a run saves, and how it goes on from what was saved."""

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from ultramem_megatron.checkpoint.disk import is_out_of_disk
from ultramem_megatron.checkpoint.integrity import check_files
from ultramem_megatron.checkpoint.load import check_same_model, load_checkpoint
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.save import package_versions, save_checkpoint
from ultramem_megatron.checkpoint.store import checkpoint_folders, find_newest, unfinished_folder
from ultramem_megatron.config.load import to_plain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import CheckpointError, OutOfDiskError
from ultramem_megatron.parallel.agree import any_rank, on_first_rank
from ultramem_megatron.training.guard import Guard
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.state import StepResult, TrainState

logger = logging.getLogger(__name__)


class SaveCheckpoints(Hook):
    """Every ``checkpoint.interval`` steps, and when the loop ends."""

    def __init__(self, root: Path, data_fingerprint: str, saved_step: int) -> None:
        """``saved_step``: that of the checkpoint the run goes on from, 0 at the start."""
        self.root, self.data_fingerprint, self.saved_step = root, data_fingerprint, saved_step

    def after_step(self, state: TrainState, result: StepResult) -> None:
        interval = state.config.checkpoint.interval
        if interval and result.step % interval == 0 and not result.bad:
            self._save(state)

    def on_exit(self, state: TrainState) -> None:
        # several bad steps in a row: the fault may be in the weights, which must not replace a good checkpoint
        if state.step > self.saved_step and state.guard.bad_in_a_row < 2:
            self._save(state)

    def _save(self, state: TrainState) -> None:
        manifest = Manifest(
            step=state.step,
            consumed_samples=state.consumed_samples,
            consumed_tokens=state.consumed_tokens,
            recent_losses=tuple(state.guard.recent_losses),
            bad_steps=state.guard.bad_steps,
            bad_in_a_row=state.guard.bad_in_a_row,
            skipped_samples=tuple(state.guard.skipped_samples),
            data_fingerprint=self.data_fingerprint,
            world_size=dist.get_world_size(),
            plan=state.plan.model_dump(mode="json", by_alias=True),
            plan_hash=state.plan.hash,
            config=to_plain(state.config),
            versions=package_versions(),
            files={},
        )
        try:
            save_checkpoint(self.root, state.ddp, state.optimizer, manifest, state.config.checkpoint.keep)
        except (OSError, CheckpointException) as error:
            full = is_out_of_disk(error)
            if isinstance(error, CheckpointException):  # on all ranks, but only some know why
                full = any_rank(full, state.groups.device)
            if full:
                raise self._out_of_disk(state) from error
            # torch's is no Exception, and would pass by whoever writes down why the run ended
            raise RuntimeError(f"the checkpoint of step {state.step} could not be written: {error}") from error
        self.saved_step = state.step

    def _out_of_disk(self, state: TrainState) -> OutOfDiskError:
        """Whatever was written of the checkpoint goes, to make room for the status file and the last numbers."""
        shutil.rmtree(unfinished_folder(self.root, state.step), ignore_errors=True)
        kept = [folder.name for folder in checkpoint_folders(self.root)]
        return OutOfDiskError(
            f"there is no room in {self.root} for the checkpoint of step {state.step}; "
            f"{f'{kept[0]} is kept' if kept else 'there is none before it'}. Make room or lower checkpoint.keep, then "
            "start the same command again"
        )


Start = tuple[Path, Manifest]


def find_start(config: RunConfig, root: Path, damaged: Mapping[Path, str] = MappingProxyType({})) -> Start | None:
    """The checkpoint to go on from: the run's newest good one, else the newest of ``checkpoint.load``.

    Every file is read and compared with what was written; a damaged checkpoint is named and the one before it taken.
    Collective over the world.

    Args:
        config: Of the run.
        root: Its folder of checkpoints.
        damaged: Checkpoints known to be of no use, with the reason.

    Raises:
        CheckpointError: There are checkpoints but none is usable, or it is of another model.
    """
    known = dict(damaged)
    while True:
        start = on_first_rank(partial(_find_start, config, root, known))
        if start is None:
            return None
        try:
            check_files(*start)
        except CheckpointError as error:
            _pass_over(start[0], error, known)
            continue
        return start


def _find_start(config: RunConfig, root: Path, damaged: Mapping[Path, str]) -> Start | None:
    """As one process sees it, by the names and sizes of files."""
    found = find_newest(root, damaged)
    if found is None and config.checkpoint.load:
        found = find_newest(Path(config.checkpoint.load), damaged)
        if found is None:
            raise CheckpointError(
                f"checkpoint.load = {config.checkpoint.load} holds no checkpoint; name a run's checkpoints folder"
            )
    if found is not None:
        check_same_model(*found, to_plain(config))
    return found


def _pass_over(folder: Path, error: CheckpointError, damaged: dict[Path, str]) -> None:
    if dist.get_rank() == 0:
        logger.warning("%s", error)
    damaged[folder] = str(error)


def resume(state: TrainState, start: Start, root: Path, data_fingerprint: str) -> Path:
    """Put the run where a checkpoint left it. Collective over the world.

    Args:
        state: Of a fresh run.
        start: What ``find_start`` gave. If what was loaded is not what was saved, the checkpoint before it is taken.
        root: The run's folder of checkpoints.
        data_fingerprint: Of the run's training samples.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: No checkpoint is usable.
    """
    damaged: dict[Path, str] = {}
    while True:
        folder, manifest = start
        try:
            load_checkpoint(folder, manifest, state.ddp, state.optimizer)
            break
        except CheckpointError as error:
            _pass_over(folder, error, damaged)
        another = find_start(state.config, root, damaged)
        assert another is not None, "find_start refuses when all are damaged"
        start = another
    if manifest.data_fingerprint != data_fingerprint and dist.get_rank() == 0:
        logger.warning(
            "%s was trained on other data, or in another order; this run reads on from sample %d of its own",
            folder,
            manifest.consumed_samples,
        )
    state.step = manifest.step
    state.consumed_samples, state.consumed_tokens = manifest.consumed_samples, manifest.consumed_tokens
    state.guard = Guard(
        recent_losses=list(manifest.recent_losses),
        bad_steps=manifest.bad_steps,
        bad_in_a_row=manifest.bad_in_a_row,
        skipped_samples=list(manifest.skipped_samples),
    )
    return folder

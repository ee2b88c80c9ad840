"""When a run saves, and how it goes on from what was saved."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch.distributed as dist

from ultramem_megatron.checkpoint.disk import names_full_disk
from ultramem_megatron.checkpoint.load import check_files, check_same_model, load_checkpoint
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.same_data import compare_data
from ultramem_megatron.checkpoint.save import Saved, Saver, package_versions
from ultramem_megatron.checkpoint.store import find_newest
from ultramem_megatron.config.load import to_plain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.identity import DataIdentity
from ultramem_megatron.data.token_source import TrainingSource
from ultramem_megatron.errors import CheckpointError, OutOfDiskError
from ultramem_megatron.metrics.catalogue import STALL_SECONDS, WRITE_SECONDS
from ultramem_megatron.monitor.publish import Publisher
from ultramem_megatron.parallel.agree import on_first_rank
from ultramem_megatron.training.guard import Guard
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.state import StepResult, TrainState

logger = logging.getLogger(__name__)


class SaveCheckpoints(Hook):
    """Every ``checkpoint.interval`` steps, and when the loop ends.

    A save that fails is reported, and the run goes on: the next one may succeed, and the checkpoints before it are
    there. Two in a row, or the last of a run, end it.
    """

    def __init__(self, root: Path, data: DataIdentity, state: TrainState, publisher: Publisher | None = None) -> None:
        """
        Args:
            root: The run's folder of checkpoints.
            data: What the run trains on.
            state: Of the run, as it is to go on. Its step was saved before, if it is not 0.
            publisher: Takes the times of each save.
        """
        self.root, self.data, self.saved_step = root, data, state.step
        self.publisher = publisher or Publisher()
        config = state.config.checkpoint
        self.saver = Saver(root, config.keep, state.groups.device, beside_training=config.async_save)
        self._failed = False

    def after_step(self, state: TrainState, result: StepResult) -> None:
        self._note(state, self.saver.poll())
        interval = state.config.checkpoint.interval
        if interval and result.step % interval == 0 and not result.bad:
            self._save(state)

    def on_exit(self, state: TrainState) -> None:
        self._note(state, self.saver.wait())
        # several bad steps in a row: the fault may be in the weights, which must not replace a good checkpoint
        if state.step > self.saved_step and state.guard.bad_in_a_row < 2:
            self._failed = True  # no other save comes after this one
            self._save(state)
            self._note(state, self.saver.wait())

    def finish(self, state: TrainState) -> None:
        """Bring a save that is under way to its end; for who leaves the loop without ``on_exit``."""
        self._note(state, self.saver.wait())

    def _save(self, state: TrainState) -> None:
        self._note(state, self.saver.wait())
        manifest = Manifest(
            step=state.step,
            consumed_samples=state.consumed_samples,
            consumed_tokens=state.consumed_tokens,
            recent_losses=tuple(state.guard.recent_losses),
            bad_steps=state.guard.bad_steps,
            bad_in_a_row=state.guard.bad_in_a_row,
            skipped_samples=tuple(state.guard.skipped_samples),
            data_fingerprint=self.data.fingerprint,
            data=self.data,
            world_size=dist.get_world_size(),
            plan=state.plan.model_dump(mode="json", by_alias=True),
            plan_hash=state.plan.hash,
            config=to_plain(state.config),
            versions=package_versions(),
            files={},
        )
        self._note(state, self.saver.start(state.ddp, state.optimizer, manifest))

    def _note(self, state: TrainState, saved: Saved | None) -> None:
        """What follows from a save that has ended."""
        if saved is None:
            return
        if saved.failure:
            message = f"no checkpoint of step {saved.step} in {self.root}: {saved.failure}"
            if self._failed and names_full_disk(saved.failure):
                raise OutOfDiskError(
                    f"{message}; earlier ones are as they were: make room, and start the command again"
                )
            if self._failed:
                raise CheckpointError(
                    f"{message}; earlier ones are as they were, and the same command resumes from them"
                )
            if dist.get_rank() == 0:
                logger.warning("%s; the run goes on, and ends if the next save fails too", message)
            self._failed = True
            return
        self._failed, self.saved_step = False, saved.step
        times = {STALL_SECONDS.name: saved.stall_seconds, WRITE_SECONDS.name: saved.write_seconds}
        self.publisher.publish(state.step, times)


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


def check_same_data(start: Start, data: TrainingSource, config: RunConfig) -> None:
    """Before anything is loaded: whether the checkpoint was trained on what the run reads.

    Raises:
        CheckpointError: It was not, and ``data.allow_change`` does not say that this is meant.
    """
    for said in compare_data(*start, data, allow_change=config.data.allow_change):
        if dist.get_rank() == 0:
            logger.warning("%s", said)


def _pass_over(folder: Path, error: CheckpointError, damaged: dict[Path, str]) -> None:
    if dist.get_rank() == 0:
        logger.warning("%s", error)
    damaged[folder] = str(error)


def resume(state: TrainState, start: Start, root: Path, data: TrainingSource) -> Path:
    """Put the run where a checkpoint left it. Collective over the world.

    Args:
        state: Of a fresh run.
        start: What ``find_start`` gave. If what was loaded is not what was saved, the checkpoint before it is taken.
        root: The run's folder of checkpoints.
        data: What the run trains on.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: No checkpoint is usable, or it was trained on other data.
    """
    check_same_data(start, data, state.config)
    damaged: dict[Path, str] = {}
    while True:
        folder, manifest = start
        try:
            load_checkpoint(folder, manifest, state.ddp, state.optimizer, state.groups.dp_cp)
            break
        except CheckpointError as error:
            _pass_over(folder, error, damaged)
        another = find_start(state.config, root, damaged)
        assert another is not None, "find_start refuses when all are damaged"
        start = another
        check_same_data(start, data, state.config)
    state.step = manifest.step
    state.consumed_samples, state.consumed_tokens = manifest.consumed_samples, manifest.consumed_tokens
    state.guard = Guard(
        recent_losses=list(manifest.recent_losses),
        bad_steps=manifest.bad_steps,
        bad_in_a_row=manifest.bad_in_a_row,
        skipped_samples=list(manifest.skipped_samples),
    )
    return folder

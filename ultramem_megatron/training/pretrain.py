"""A whole pretraining run on this process: set up, resume, train."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from ultramem_megatron.checkpoint.settings import ChangedSetting, changed_settings
from ultramem_megatron.checkpoint.store import remove_leftovers
from ultramem_megatron.config.folders import with_whole_paths
from ultramem_megatron.config.load import to_plain, to_yaml
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.dataset import open_training_data, open_validation_data
from ultramem_megatron.data.token_source import TokenSource
from ultramem_megatron.errors import DivergedError
from ultramem_megatron.files import write_text
from ultramem_megatron.monitor.events import EventLog
from ultramem_megatron.monitor.publish import Publisher, open_publisher
from ultramem_megatron.parallel.work_meter import WorkMeter
from ultramem_megatron.planning.plan import Plan
from ultramem_megatron.planning.report import summary
from ultramem_megatron.training.checkpointing import SaveCheckpoints, check_same_data, find_start, resume
from ultramem_megatron.training.go_back import WayBack
from ultramem_megatron.training.heartbeat import WATCHDOG_FOLDER, forget_earlier
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.loop import Outcome, run_loop
from ultramem_megatron.training.reporting import ReportBadSteps, ReportMemory, ReportSteps
from ultramem_megatron.training.setup import build_run_groups, build_train_state
from ultramem_megatron.training.state import StepResult, TrainState
from ultramem_megatron.training.step import GoBack
from ultramem_megatron.training.stop import StopRequest
from ultramem_megatron.training.stragglers import MeasureWork, ReportStragglers
from ultramem_megatron.training.validation import Validate
from ultramem_megatron.training.watchdog import TakesLong, Watchdog, Watched

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"


def pretrain(
    config: RunConfig,
    plan: Plan,
    run_dir: Path,
    device: torch.device,
    end_hung: Callable[[str], None] | None = None,
    stop: StopRequest | None = None,
) -> Outcome:
    """Train to ``training.steps`` from the newest checkpoint in ``run_dir``, or from scratch.

    Collective over the world. Nothing is written to the run folder before
    checkpoint, data and model were found in order.

    Args:
        config: The run's settings.
        plan: Made for them and this number of ranks.
        run_dir: Folder of the run.
        device: Of this rank.
        end_hung: Called by a thread, with the reason, when the run gets no further; ends the process.
            None: nobody watches.
        stop: Takes signals from now on, and tells afterwards why the run was stopped.
    """
    stop = stop or StopRequest()
    stop.listen()
    start = find_start(config, run_dir / CHECKPOINTS)
    training_data = open_training_data(config)
    if training_data.unread and dist.get_rank() == 0:
        print(training_data.unread, flush=True)
    if start is not None:
        check_same_data(start, training_data, config)  # before the model takes its time
    validation_data = open_validation_data(config) if config.training.eval_interval else {}
    config = with_whole_paths(config)  # what is saved holds from any folder, and is compared with what was
    groups = build_run_groups(config, plan, device)
    state = build_train_state(config, plan, groups)
    changes: list[ChangedSetting] = []
    if start is not None:
        folder, manifest = resume(state, start, run_dir / CHECKPOINTS, training_data)
        changes = changed_settings(folder, manifest, to_plain(config), run_dir / CHECKPOINTS)
        if dist.get_rank() == 0:
            print(f"resumed from {folder}: step {state.step} of {config.training.steps}", flush=True)
    write_run_files(config, plan, run_dir)
    events = EventLog(run_dir, reports=dist.get_rank() == 0)
    for change in changes:
        events.write(state.step, "changed_setting", str(change), change.as_record())
    way_back = WayBack(run_dir / CHECKPOINTS, training_data)
    with _open_watchdog(config, run_dir, end_hung) as watchdog, WorkMeter(device) as meter:
        while True:
            with _open_publisher(config, plan, run_dir, state) as publisher:
                save = SaveCheckpoints(run_dir / CHECKPOINTS, training_data.identity, state, publisher)
                reports = _reports(publisher, events, meter, state)
                hooks = _hooks(publisher, reports, watchdog, validation_data, save)
                try:
                    return run_loop(state, state.training_batches(training_data), hooks, stop)
                except DivergedError as end:
                    save.finish(state)
                    events.write(state.step, "diverged", str(end))
                    raise
                except GoBack as bad:
                    save.finish(state)
                    watchdog.progress(state.step, "going back to a checkpoint", may_take_long=True)
                    done = way_back.go(state)
                    if done is None:
                        _skip(state, bad.result, hooks)
                        continue
                    words = f"{bad}; {done}"
                    events.write(state.step, "bad_step", words)
                    publisher.text(state.step, "bad step", words)


def _skip(state: TrainState, result: StepResult, hooks: Sequence[Hook]) -> None:
    """What ``resilience.bad_step = skip`` does, for a bad step from which there is no way back yet."""
    state.advance()
    skipped = replace(result, bad=f"{result.bad}, and there is no checkpoint yet to go back to")
    for hook in hooks:
        hook.after_step(state, skipped)


def write_run_files(config: RunConfig, plan: Plan, run_dir: Path) -> None:
    """``config.yaml`` and ``plan.json``, and nothing that an earlier start left half-written, on one rank.

    Collective over the world.
    """
    if dist.get_rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run_dir / CHECKPOINTS)
        forget_earlier(run_dir / WATCHDOG_FOLDER)
        write_text(run_dir / "config.yaml", to_yaml(with_whole_paths(config)))
        plan.save(run_dir / "plan.json")
    dist.barrier()


def _reports(publisher: Publisher, events: EventLog, meter: WorkMeter, state: TrainState) -> list[Hook]:
    """Hooks that say what a step was, in the order in which they act."""
    steps: list[Hook] = [
        ReportSteps(publisher, state.config),
        ReportBadSteps(publisher, events),
        ReportMemory(publisher, state),
    ]
    if not state.config.resilience.straggler_ratio:
        return steps
    work = MeasureWork(meter, state)
    return [work, *steps, ReportStragglers(publisher, events, work, state)]


def _hooks(
    publisher: Publisher,
    reports: list[Hook],
    watchdog: Watchdog,
    validation_data: dict[str, TokenSource],
    save: SaveCheckpoints,
) -> list[Hook]:
    """In the order in which they act; a step is reported before it is saved."""
    hooks = [Watched(watchdog), *reports]
    if validation_data:
        hooks.append(TakesLong(Validate(publisher, validation_data), watchdog, "validation"))
    return [*hooks, TakesLong(save, watchdog, "saving a checkpoint")]


def _open_watchdog(config: RunConfig, run_dir: Path, end: Callable[[str], None] | None) -> Watchdog:
    settings = config.resilience if end else replace(config.resilience, hang_seconds=0.0)
    return Watchdog(run_dir, settings, rank=dist.get_rank(), world_size=dist.get_world_size(), end=end or logger.error)


def _open_publisher(config: RunConfig, plan: Plan, run_dir: Path, state: TrainState) -> Publisher:
    publisher = open_publisher(
        run_dir,
        reports=dist.get_rank() == 0,
        total_steps=config.training.steps,
        log_interval=config.monitor.log_interval,
        resume_step=state.step,
    )
    publisher.text(state.step, "config", f"```yaml\n{to_yaml(config)}```")
    publisher.text(state.step, "plan", f"Hash `{plan.hash}`\n```\n{summary(plan)}\n```\n```json\n{plan.to_json()}\n```")
    return publisher

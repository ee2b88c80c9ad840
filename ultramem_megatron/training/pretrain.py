"""A whole pretraining run on this process: set up, resume, train."""

from pathlib import Path

import torch
import torch.distributed as dist

from ultramem_megatron.checkpoint.store import remove_leftovers
from ultramem_megatron.config.load import to_yaml
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.dataset import open_training_data, open_validation_data
from ultramem_megatron.data.token_source import TokenSource
from ultramem_megatron.files import write_text
from ultramem_megatron.monitor.publish import Publisher, open_publisher
from ultramem_megatron.planning.plan import Plan
from ultramem_megatron.planning.report import summary
from ultramem_megatron.training.checkpointing import SaveCheckpoints, find_start, resume
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.loop import Outcome, run_loop
from ultramem_megatron.training.reporting import ReportMemory, ReportSteps
from ultramem_megatron.training.setup import build_run_groups, build_train_state
from ultramem_megatron.training.state import TrainState
from ultramem_megatron.training.stop import StopRequest
from ultramem_megatron.training.validation import Validate

CHECKPOINTS = "checkpoints"


def pretrain(config: RunConfig, plan: Plan, run_dir: Path, device: torch.device) -> Outcome:
    """Train to ``training.steps`` from the newest checkpoint in ``run_dir``, or from scratch.

    Collective over the world. Nothing is written to the run folder before
    checkpoint, data and model were found in order.
    """
    stop = StopRequest()
    stop.listen()
    start = find_start(config, run_dir / CHECKPOINTS)
    training_data = open_training_data(config)
    validation_data = open_validation_data(config) if config.training.eval_interval else {}
    groups = build_run_groups(config, plan, device)
    state = build_train_state(config, plan, groups)
    if start is not None:
        folder = resume(state, start, run_dir / CHECKPOINTS, training_data.fingerprint)
        if dist.get_rank() == 0:
            print(f"resumed from {folder}: step {state.step} of {config.training.steps}", flush=True)
    write_run_files(config, plan, run_dir)
    with _open_publisher(config, plan, run_dir, state) as publisher:
        hooks = _hooks(publisher, state, run_dir, training_data, validation_data)
        return run_loop(state, state.batches(training_data, state.consumed_samples), hooks, stop)


def write_run_files(config: RunConfig, plan: Plan, run_dir: Path) -> None:
    """``config.yaml`` and ``plan.json``, and no half-written checkpoints, on one rank. Collective over the world."""
    if dist.get_rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run_dir / CHECKPOINTS)
        write_text(run_dir / "config.yaml", to_yaml(config))
        plan.save(run_dir / "plan.json")
    dist.barrier()


def _hooks(
    publisher: Publisher,
    state: TrainState,
    run_dir: Path,
    training_data: TokenSource,
    validation_data: dict[str, TokenSource],
) -> list[Hook]:
    """In the order in which they act; a step is reported before it is saved."""
    hooks: list[Hook] = [ReportSteps(publisher, state.config), ReportMemory(publisher, state)]
    if validation_data:
        hooks.append(Validate(publisher, validation_data))
    return [*hooks, SaveCheckpoints(run_dir / CHECKPOINTS, training_data.fingerprint, state, publisher)]


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

"""Steps and hooks. Knows nothing of checkpoints or metrics."""

from collections.abc import Iterator, Sequence
from enum import Enum

from ultramem_megatron.data.batch import Batch
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.state import TrainState
from ultramem_megatron.training.step import train_step
from ultramem_megatron.training.stop import StopRequest


class Outcome(Enum):
    """How the loop ended."""

    FINISHED = "finished"
    STOPPED = "stopped"


def run_loop(state: TrainState, batches: Iterator[list[Batch]], hooks: Sequence[Hook], stop: StopRequest) -> Outcome:
    """Train from ``state.step`` to ``training.steps``, or until a stop is requested. Collective over the world."""
    outcome = Outcome.FINISHED
    while state.step < state.config.training.steps:
        if stop.is_requested(state):
            outcome = Outcome.STOPPED
            break
        for hook in hooks:
            hook.before_step(state)
        result = train_step(state, next(batches))
        for hook in hooks:
            hook.after_step(state, result)
    for hook in hooks:
        hook.on_exit(state)
    return outcome

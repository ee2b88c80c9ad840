"""One optimizer step."""

from ultramem_megatron.data.batch import Batch
from ultramem_megatron.training.forward_backward import run_micro_batches
from ultramem_megatron.training.random_state import seed_step
from ultramem_megatron.training.state import StepResult, TrainState


def train_step(state: TrainState, micro_batches: list[Batch]) -> StepResult:
    """Forward, backward, reduce, clip, update. Collective over the world.

    Args:
        state: The run; goes on by one step.
        micro_batches: This rank's share of the next global batch.
    """
    step = state.step + 1
    seed_step(state.config, state.groups, step)
    state.schedule.begin_step(step)
    for chunk, ddp in zip(state.chunks, state.ddp, strict=True):
        for layer in chunk.memory_layers:
            layer.begin_step()
        ddp.train()
        ddp.zero_grad_buffer()
    state.optimizer.zero_grad()
    loss = run_micro_batches(state, micro_batches, forward_only=False)
    _, gradient_norm, _ = state.optimizer.step()
    state.advance()
    return StepResult(
        step=step,
        loss=loss,
        gradient_norm=float(gradient_norm or 0.0),
        learning_rate=state.schedule.rate(values=False),
        value_learning_rate=state.schedule.rate(values=True),
    )

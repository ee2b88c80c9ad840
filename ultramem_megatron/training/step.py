"""One optimizer step."""

from ultramem_megatron.config.resilience import BadStep
from ultramem_megatron.data.batch import Batch
from ultramem_megatron.errors import DivergedError
from ultramem_megatron.optim.guarded_step import step_if
from ultramem_megatron.parallel.agree import any_rank
from ultramem_megatron.training.forward_backward import run_micro_batches
from ultramem_megatron.training.random_state import seed_step
from ultramem_megatron.training.state import StepResult, TrainState


class GoBack(Exception):
    """A step was bad, nothing was updated, and the run is to return to its newest checkpoint."""

    def __init__(self, result: StepResult) -> None:
        """``result``: the step, as it would be reported if it were skipped."""
        super().__init__(f"step {result.step}: {result.bad}")
        self.result = result


def train_step(state: TrainState, micro_batches: list[Batch]) -> StepResult:
    """Forward, backward, reduce, clip, update. Collective over the world.

    Args:
        state: The run; goes on by one step.
        micro_batches: This rank's share of the next global batch.

    Raises:
        GoBack: The step was bad and ``resilience.bad_step`` is ``roll_back``.
        DivergedError: It was bad, as ``resilience.max_bad_steps`` were before it.
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
    reasons: list[str] = []

    def is_good(gradient_norm: float) -> bool:
        reasons.append(_why_bad(state, loss, gradient_norm))
        return not reasons[0]

    gradient_norm = step_if(state.optimizer, is_good)
    learning_rate = state.schedule.rate(values=False)
    assert learning_rate is not None, "every model has dense parameters"
    result = StepResult(
        step=step,
        loss=loss,
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
        value_learning_rate=state.schedule.rate(values=True),
        bad=reasons[0],
    )
    _act(state, result)
    state.advance()
    return result


def _why_bad(state: TrainState, loss: float, gradient_norm: float) -> str:
    """What any rank has against the step; empty if none has. Collective over the world."""
    reason = state.guard.judge(state.config.resilience, loss, gradient_norm)
    # the numbers are sums over all ranks and should be the same; one rank that skips alone would ruin the run
    is_bad = any_rank(bool(reason), state.groups.device)
    return reason or ("another rank finds it bad" if is_bad else "")


def _act(state: TrainState, result: StepResult) -> None:
    settings, guard = state.config.resilience, state.guard
    guard.remember(settings, result.loss, result.bad)
    if not result.bad:
        return
    if guard.bad_steps > settings.max_bad_steps:
        raise DivergedError(
            f"step {result.step}: {result.bad}; resilience.max_bad_steps = {settings.max_bad_steps} steps were bad "
            "before. The last checkpoint is kept: go on from it, by the same command, with a lower "
            "optimizer.learning_rate or other data"
        )
    if settings.bad_step is BadStep.ROLL_BACK:
        raise GoBack(result)

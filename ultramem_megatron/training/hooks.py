"""What happens around a step: each concern is a hook, and the loop knows none of them."""

from ultramem_megatron.training.state import StepResult, TrainState


class Hook:
    """Does nothing; override what is needed. All ranks have the same hooks, so a hook may communicate."""

    def before_step(self, state: TrainState) -> None:
        """``state.step`` steps are done and the next begins."""

    def after_step(self, state: TrainState, result: StepResult) -> None:
        """The step is done on all ranks."""

    def on_exit(self, state: TrainState) -> None:
        """The loop ends, finished or stopped; not called when a step failed."""

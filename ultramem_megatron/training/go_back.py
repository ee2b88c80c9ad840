"""Return to the newest checkpoint after a bad step, and leave the samples out that led there."""

from dataclasses import dataclass, field
from pathlib import Path

from ultramem_megatron.data.batch import SampleRange
from ultramem_megatron.data.token_source import TrainingSource
from ultramem_megatron.errors import CheckpointError, DivergedError
from ultramem_megatron.training.checkpointing import find_start, resume
from ultramem_megatron.training.state import TrainState

RETURNS = 2
"""So often a run goes back to one checkpoint: after that the fault is taken to be in it, and the one before is used."""


@dataclass(frozen=True, slots=True)
class WayBack:
    """Where the checkpoints are, and which have been gone back to."""

    root: Path
    """The run's folder of checkpoints."""
    data: TrainingSource
    returns: dict[Path, int] = field(default_factory=dict)

    def go(self, state: TrainState) -> str | None:
        """Put ``state`` there. Collective over the world.

        Returns:
            What was done, for people; None when there is no checkpoint yet, and nothing was done.

        Raises:
            DivergedError: No checkpoint is left to go back to.
        """
        worn = {folder: f"{folder} led to bad steps {n} times" for folder, n in self.returns.items() if n >= RETURNS}
        bad_step, first = state.step + 1, state.next_sample
        bad_steps, skipped = state.guard.bad_steps, state.guard.skipped_samples
        try:
            start = find_start(state.config, self.root, worn)
            if start is None:
                return None
            folder = resume(state, start, self.root, self.data)
        except CheckpointError as error:
            raise DivergedError(f"step {bad_step} is bad, and there is nothing to go back to: {error}") from error
        self.returns[folder] = self.returns.get(folder, 0) + 1
        left_out = _left_out(state, first)
        # what is known now was not when that checkpoint was written
        state.guard.bad_steps, state.guard.skipped_samples = bad_steps, [*skipped, left_out]
        return f"goes back to {folder.name} and leaves out samples {left_out[0]} to {left_out[1] - 1}"


def _left_out(state: TrainState, first: int) -> SampleRange:
    """Those of the bad step, which begins at sample ``first``, and of steps before it, but none that is trained on."""
    batch = state.config.training.global_batch_size
    earlier = first - (state.config.resilience.rolled_back_steps - 1) * batch
    return max(earlier, state.consumed_samples), first + batch

"""What a run does about ranks that hang, steps that go wrong and starts that fail."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from ultramem_megatron.config.check import MOST_STEPS, Between, Seconds, SecondsOrNever, Steps, require_ranges
from ultramem_megatron.errors import ConfigError


class BadStep(StrEnum):
    """What becomes of a step whose loss or gradient norm is no finite number, or whose loss is far off."""

    SKIP = "skip"
    """Its gradient is thrown away: weights and optimizer stay as they were."""
    ROLL_BACK = "roll_back"
    """The run goes back to its newest checkpoint and leaves the samples out that led there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResilienceConfig:
    """Limits; none of them changes a run in which nothing goes wrong."""

    hang_seconds: SecondsOrNever = 600.0
    """A step may take so long; then the ranks that stand still are named and the run ends as hung. 0 for never. Keep it
    below ``parallelism.timeout_seconds``, after which a collective gives up without a name."""

    pause_seconds: Seconds = 1800.0
    """The same for what takes long by right: the first step, a checkpoint, a validation."""

    straggler_ratio: Annotated[float, Between(0, 1e6, "never")] = 1.5
    """A rank whose own work in a step takes more than so many times the median of its pipeline stage is named when it
    does so in several reports in a row, which come every ``monitor.log_interval`` steps. 0 to measure nothing."""

    bad_step: BadStep = BadStep.SKIP
    """What becomes of a bad step: ``skip`` or ``roll_back``."""

    loss_spike_factor: Annotated[float, Between(0, 1e6, "never")] = 2.0
    """A loss of more than so many times the median of the last ones is bad, too; 0 to look for NaN and infinity
    alone."""

    loss_window: Annotated[int, Between(1, 10**6)] = 64
    """Good steps whose losses make the median; none is judged before there are that many."""

    max_bad_steps: Annotated[int, Between(0, MOST_STEPS)] = 10
    """Bad steps in the whole run; one more and it ends as diverged, with its last checkpoint."""

    rolled_back_steps: Steps = 2
    """Steps whose samples are left out after going back: the bad one and those right before it, whose update the bad
    loss may come from."""

    def __post_init__(self) -> None:
        require_ranges("resilience", self)
        if 0 < self.loss_spike_factor <= 1:
            raise ConfigError(
                f"resilience.loss_spike_factor = {self.loss_spike_factor} would call usual losses bad; set it above 1, "
                "or to 0 to look for NaN and infinity alone"
            )
        if 0 < self.straggler_ratio <= 1:
            raise ConfigError(
                f"resilience.straggler_ratio = {self.straggler_ratio} would name ranks that are as fast as the others; "
                "set it above 1, or to 0 to measure nothing"
            )
        if self.pause_seconds < self.hang_seconds:
            raise ConfigError(
                f"resilience.pause_seconds = {self.pause_seconds:g} must not be below resilience.hang_seconds = "
                f"{self.hang_seconds:g}: it is the limit for what takes longer than a step"
            )

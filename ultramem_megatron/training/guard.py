"""Tells good steps from bad ones by loss and gradient norm, and remembers what was left out. Saved in checkpoints.

Only numbers that are the same on every rank are judged, and only what is saved is remembered: so all ranks agree, and a
resumed run decides as if it had never been interrupted.
"""

import math
from dataclasses import dataclass, field
from statistics import median

from ultramem_megatron.config.resilience import ResilienceConfig
from ultramem_megatron.data.batch import SampleRange


@dataclass(kw_only=True, slots=True)
class Guard:
    """What earlier steps were like."""

    recent_losses: list[float] = field(default_factory=list)
    """Of the last good steps, oldest first, at most ``resilience.loss_window``."""
    bad_steps: int = 0
    """In the whole run."""
    bad_in_a_row: int = 0
    """At the end of it."""
    skipped_samples: list[SampleRange] = field(default_factory=list)
    """Left out after going back."""

    def judge(self, settings: ResilienceConfig, loss: float, gradient_norm: float) -> str:
        """Why a step is bad; empty for a good one. Changes nothing.

        Args:
            settings: Limits.
            loss: Mean over the global batch, nats per token.
            gradient_norm: Of all gradients together, before clipping.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        factor = settings.loss_spike_factor
        if factor and len(self.recent_losses) >= settings.loss_window:
            usual = median(self.recent_losses[-settings.loss_window :])
            if loss > factor * usual:
                return f"the loss is {loss:.4f}, over {factor:g} times the {usual:.4f} of the steps before"
        return ""

    def remember(self, settings: ResilienceConfig, loss: float, reason: str) -> None:
        """A step was judged: ``reason`` is empty for a good one."""
        if reason:
            self.bad_steps += 1
            self.bad_in_a_row += 1
        else:
            self.bad_in_a_row = 0
            self.recent_losses = [*self.recent_losses, loss][-settings.loss_window :]

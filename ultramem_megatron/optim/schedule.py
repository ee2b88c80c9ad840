"""Learning rates: warm-up and cosine for all, and the value tables' multiplier that decays to 1."""

from typing import Any

from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from ultramem_megatron.config.optimizer import OptimizerConfig

VALUE_RATE = "value_lr_multiplier"
"""Key that marks the parameter groups of value tables."""


def value_multiplier(step: int, steps: int, config: OptimizerConfig) -> float:
    """How much faster value tables learn at ``step``: from ``value_lr_multiplier`` linearly down to 1.

    Paper section 4 (10x to 1x); the form is that of the published code, ``1 + (k - 1) * max(0, 1 - t / (T * rho))``.
    """
    left = max(0.0, 1 - step / (steps * config.value_lr_decay_fraction))
    return 1 + (config.value_lr_multiplier - 1) * left


class RateSchedule(OptimizerParamScheduler):
    """megatron-core's scheduler, counting optimizer steps, with a rate of its own for value tables."""

    def __init__(self, optimizer: ChainedOptimizer, config: OptimizerConfig, steps: int) -> None:
        self.rates, self.steps = config, steps
        warmup = min(round(config.warmup_fraction * steps), steps - 1)
        super().__init__(
            optimizer,
            init_lr=0.0,
            max_lr=config.learning_rate,
            min_lr=config.learning_rate * config.min_learning_rate_fraction,
            lr_warmup_steps=warmup,
            lr_decay_steps=steps,
            lr_decay_style="cosine",
            start_wd=config.weight_decay,
            end_wd=config.weight_decay,
            wd_incr_steps=steps,
            wd_incr_style="constant",
        )

    def get_lr(self, param_group: dict[str, Any]) -> float:
        """Rate of a group at the present step."""
        rate = super().get_lr(param_group)
        if VALUE_RATE in param_group:
            rate *= value_multiplier(self.num_steps, self.steps, self.rates)
        return rate

    def begin_step(self, step: int) -> None:
        """Set the rates of optimizer step ``step``, counted from 1; any step may follow any other."""
        self.step(step - self.num_steps)

    def rate(self, *, values: bool) -> float | None:
        """Learning rate of the value tables or of the rest, read from the optimizer that steps with it.

        None where there are no tables.
        """
        groups = [group for group in self.optimizer.param_groups if (VALUE_RATE in group) is values]
        return float(groups[0]["lr"]) if groups else None

"""AdamW, its schedule, and the value tables' own learning rate."""

from dataclasses import dataclass

from ultramem_megatron.config.check import require_positive
from ultramem_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Defaults are the paper's (Table 4), but for the learning rate, which goes with the model's size."""

    learning_rate: float = 6e-4
    """Peak rate; the paper's for 151M activated parameters."""

    min_learning_rate_fraction: float = 0.1
    """The cosine ends at this share of the peak."""

    warmup_fraction: float = 0.01
    """Share of all steps with a linearly rising rate."""

    weight_decay: float = 0.1
    """Decoupled; not on one-dimensional parameters. Value tables decay like the rest."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8

    clip_gradient: float = 1.0
    """Bound on the norm of all gradients together, tables included; 0 for none."""

    value_lr_multiplier: float = 10.0
    """The value tables learn this many times faster at first (paper Table 2, "value lr decay") ..."""

    value_lr_decay_fraction: float = 1.0
    """... falling linearly to 1 over this share of all steps. The paper does not state the span."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "value_lr_multiplier", "value_lr_decay_fraction"):
            require_positive(f"optimizer.{name}", getattr(self, name))
        for name in ("min_learning_rate_fraction", "warmup_fraction", "beta1", "beta2"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"optimizer.{name} = {value} must lie between 0 and 1")
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                raise ConfigError(f"optimizer.{name} = 1 must lie below 1, or no gradient would ever count")
        for name in ("weight_decay", "clip_gradient"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optimizer.{name} = {getattr(self, name)} must not be negative")

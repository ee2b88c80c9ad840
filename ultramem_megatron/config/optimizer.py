"""AdamW, its schedule, and the value tables' own learning rate."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from ultramem_megatron.config.check import Between, Share, require_ranges
from ultramem_megatron.errors import ConfigError

BF16_MOST_BETA = 0.99
"""A bf16 number has 8 bits: a change of a moment by less than 2**-8 of itself is lost to rounding, and 1 - beta is the
part that a step without gradient takes away."""


class TableUpdate(StrEnum):
    """Which rows of the value tables an optimizer step changes (``optim/README.md``)."""

    DENSE = "dense"
    """All: AdamW as it is."""
    LAZY = "lazy"
    """Those with a gradient in this step; the others keep weights and moments, and do not decay."""


class MomentType(StrEnum):
    """Type in which a moment is kept from step to step; it is computed in fp32."""

    FP32 = "fp32"
    BF16 = "bf16"


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Defaults are the paper's (Table 4), but for the learning rate, which goes with the model's size."""

    learning_rate: Annotated[float, Between(1e-12, 100)] = 6e-4
    """Peak rate; the paper's for 151M activated parameters."""

    min_learning_rate_fraction: Share = 0.1
    """The cosine ends at this share of the peak."""

    warmup_fraction: Share = 0.01
    """Share of all steps with a linearly rising rate."""

    weight_decay: Annotated[float, Between(0, 100)] = 0.1
    """Decoupled; not on one-dimensional parameters. Value tables decay like the rest."""

    beta1: Share = 0.9
    beta2: Share = 0.95
    epsilon: Annotated[float, Between(1e-20, 1)] = 1e-8

    clip_gradient: Annotated[float, Between(0, 1e6, "none")] = 1.0
    """Bound on the norm of all gradients together, tables included; 0 for none."""

    value_lr_multiplier: Annotated[float, Between(1e-6, 1e6)] = 10.0
    """The value tables learn this many times faster at first (paper Table 2, "value lr decay") ..."""

    value_lr_decay_fraction: Annotated[float, Between(1e-6, 1e6)] = 1.0
    """... falling linearly to 1 over this share of all steps. The paper does not state the span."""

    table_update: TableUpdate = TableUpdate.DENSE
    """Of value tables: ``dense`` (AdamW, exactly) or ``lazy`` (rows without gradient stay as they are, which costs less
    time where a step picks a small part of a table)."""

    table_exp_avg_dtype: MomentType = MomentType.FP32
    """Type of the first moment of value tables: ``fp32`` or ``bf16``. Megatron's word is exp_avg_dtype, for all."""

    table_exp_avg_sq_dtype: MomentType = MomentType.FP32
    """Type of the second moment of value tables: ``fp32`` or ``bf16``."""

    optimizer_cpu_offload: bool = False
    """Megatron's, which is refused: see ``_check_offload``."""

    def __post_init__(self) -> None:
        require_ranges("optimizer", self)
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                raise ConfigError(f"optimizer.{name} = 1 must lie below 1, or no gradient would ever count")
        self._check_moments()
        self._check_offload()

    def _check_moments(self) -> None:
        for name, beta in (("table_exp_avg_dtype", "beta1"), ("table_exp_avg_sq_dtype", "beta2")):
            if getattr(self, name) is MomentType.BF16 and getattr(self, beta) > BF16_MOST_BETA:
                raise ConfigError(
                    f"optimizer.{name} = bf16 with optimizer.{beta} = {getattr(self, beta)}: a step would change the "
                    f"moment by less than bf16 can hold, and it would stand still; lower {beta} to {BF16_MOST_BETA} or "
                    f"less, or set {name} to fp32"
                )

    def _check_offload(self) -> None:
        """megatron-core 0.16.1 has it for all parameters or none, needs CUDA for it, and each step moves every gradient
        and weight over the bus, however few rows were touched. It was never run with tables (``optim/README.md``)."""
        if self.optimizer_cpu_offload:
            raise ConfigError(
                "optimizer.optimizer_cpu_offload = true is not offered: megatron-core would keep the state of all "
                "parameters on the host, not of tables alone, and send a table's whole gradient there in each step; "
                "set it to false, and share the tables among more ranks or set optimizer.table_exp_avg_dtype and "
                "table_exp_avg_sq_dtype to bf16"
            )

    @property
    def own_table_step(self) -> tuple[str, ...]:
        """The settings, if any, that make the step of value tables another than that of the dense model."""
        settings = []
        if self.table_update is not TableUpdate.DENSE:
            settings.append(f"optimizer.table_update = {self.table_update}")
        for name in ("table_exp_avg_dtype", "table_exp_avg_sq_dtype"):
            if getattr(self, name) is not MomentType.FP32:
                settings.append(f"optimizer.{name} = {getattr(self, name)}")
        return tuple(settings)

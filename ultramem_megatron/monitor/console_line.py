"""The lines that a run prints: short, aligned, and not spoilt by a NaN or a number that has run away."""

import math
from collections.abc import Mapping

from ultramem_megatron.metrics.catalogue import (
    GRADIENT_NORM,
    LEARNING_RATE,
    LOSS,
    TOKENS_PER_SECOND,
    VALIDATION_LOSS,
)
from ultramem_megatron.units import format_count, format_seconds

_LONGEST_WAIT_SECONDS = 100 * 24 * 3600


def training_line(step: int, total_steps: int, values: Mapping[str, float], seconds_left: float | None) -> str:
    """``step  120/240 | loss   6.2134 | lr 1.93e-03 | grad norm    0.812 | 12.30 k tokens/s | left 0:01:23``.

    Args:
        step: Steps done.
        total_steps: Steps of the whole run.
        values: Numbers by full name; what is missing is left out.
        seconds_left: Estimated time to the end; None when unknown.
    """
    fields = [_step_field(step, total_steps)]
    if LOSS.name in values:
        fields.append(f"loss {_fixed(values[LOSS.name], 4)}")
    if LEARNING_RATE.name in values:
        fields.append(f"lr {values[LEARNING_RATE.name]:.2e}")
    if GRADIENT_NORM.name in values:
        fields.append(f"grad norm {_fixed(values[GRADIENT_NORM.name], 3)}")
    if TOKENS_PER_SECOND.name in values:
        fields.append(f"{_count(values[TOKENS_PER_SECOND.name]):>8} tokens/s")
    if seconds_left is not None:
        fields.append(f"left {_duration(seconds_left)}")
    return " | ".join(fields)


def validation_line(step: int, total_steps: int, values: Mapping[str, float]) -> str | None:
    """``step  120/240 | validation loss 5.9512 (gcide 5.3100, sotu 6.5924)``; None without validation values."""
    prefix = VALIDATION_LOSS.full_name() + "/"
    sources = [
        f"{name.removeprefix(prefix)} {_fixed(values[name], 4).strip()}" for name in values if name.startswith(prefix)
    ]
    parts = [_fixed(values[VALIDATION_LOSS.name], 4).strip()] if VALIDATION_LOSS.name in values else []
    if sources:
        parts.append(f"({', '.join(sources)})")
    return f"{_step_field(step, total_steps)} | validation loss {' '.join(parts)}" if parts else None


def _step_field(step: int, total_steps: int) -> str:
    return f"step {step:>{len(str(total_steps))}}/{total_steps}"


def _fixed(value: float, decimals: int) -> str:
    """Eight characters, or nine with a sign: fixed point while it fits, else scientific."""
    return f"{value:8.2e}" if math.isfinite(value) and abs(value) >= 1000 else f"{value:8.{decimals}f}"


def _count(value: float) -> str:
    return format_count(value) if math.isfinite(value) and abs(value) < 1e15 else f"{value:.2e}"


def _duration(seconds: float) -> str:
    if not 0 <= seconds < _LONGEST_WAIT_SECONDS:
        return "over 100 days"
    return format_seconds(seconds) if seconds >= 1 else "0:00:00"

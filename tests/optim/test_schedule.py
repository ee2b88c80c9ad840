"""Learning rates of single steps, against the formulas."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from ultramem_megatron.config.optimizer import OptimizerConfig
from ultramem_megatron.optim.schedule import VALUE_RATE, RateSchedule, value_multiplier

STEPS = 100
CONFIG = OptimizerConfig(learning_rate=1e-2, min_learning_rate_fraction=0.1, warmup_fraction=0.1)


def schedule(config: OptimizerConfig = CONFIG, steps: int = STEPS) -> tuple[RateSchedule, list[dict[str, Any]]]:
    """The schedule, and the parameter groups that it sets: a dense one and that of the value tables."""
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], VALUE_RATE: config.value_lr_multiplier}]
    return RateSchedule(SimpleNamespace(param_groups=groups), config, steps), groups  # type: ignore[arg-type]


def cosine(step: int) -> float:
    """Warm-up over 10 of 100 steps to 1e-2, then half a cosine down to 1e-3."""
    if step <= 10:
        return 1e-2 * step / 10
    return 1e-3 + (1e-2 - 1e-3) * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90))


@pytest.mark.parametrize(
    ("step", "decay_fraction", "multiplier"),
    [(0, 1.0, 10.0), (50, 1.0, 5.5), (100, 1.0, 1.0), (150, 1.0, 1.0), (25, 0.5, 5.5), (50, 0.5, 1.0), (75, 0.5, 1.0)],
)
def test_the_multiplier_falls_linearly_to_one(step: int, decay_fraction: float, multiplier: float) -> None:
    config = OptimizerConfig(value_lr_decay_fraction=decay_fraction)
    assert value_multiplier(step, 100, config) == pytest.approx(multiplier, rel=1e-12)


def test_no_multiplier() -> None:
    config = OptimizerConfig(value_lr_multiplier=1.0)
    assert [value_multiplier(step, 100, config) for step in (0, 50, 100)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("step", [1, 5, 10, 11, 55, 99, 100])
def test_the_rates_of_a_step(step: int) -> None:
    rates, groups = schedule()
    for number in range(1, step + 1):
        rates.begin_step(number)
    assert rates.rate(values=False) == pytest.approx(cosine(step), rel=1e-12)
    assert rates.rate(values=True) == pytest.approx(cosine(step) * (1 + 9 * (1 - step / 100)), rel=1e-12)
    assert [group["lr"] for group in groups] == [rates.rate(values=False), rates.rate(values=True)]


def test_the_ends() -> None:
    rates, _ = schedule()
    rates.begin_step(10)
    assert rates.rate(values=False) == 1e-2
    rates.begin_step(STEPS)
    assert rates.rate(values=False) == rates.rate(values=True) == pytest.approx(1e-3)


@pytest.mark.parametrize("step", [1, 7, 42, 100])
def test_a_resumed_run_begins_anywhere(step: int) -> None:
    walked, _ = schedule()
    for number in range(1, step + 1):
        walked.begin_step(number)
    jumped, groups = schedule()
    jumped.begin_step(step)
    assert jumped.rate(values=False) == walked.rate(values=False)
    assert jumped.rate(values=True) == walked.rate(values=True)
    jumped.begin_step(3)
    assert groups[0]["lr"] == pytest.approx(cosine(3))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_shortest_runs(steps: int, fraction: float) -> None:
    rates, _ = schedule(OptimizerConfig(learning_rate=1e-2, warmup_fraction=fraction), steps)
    for step in range(1, steps + 1):
        rates.begin_step(step)
        assert 0 < rates.rate(values=False) <= 1e-2


def test_the_weight_decay_stays() -> None:
    rates, groups = schedule(OptimizerConfig(weight_decay=0.3))
    for step in (1, 50, 100):
        rates.begin_step(step)
        assert [group["weight_decay"] for group in groups] == [0.3, 0.3]

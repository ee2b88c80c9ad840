"""Means over seeds and how far to trust them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean and its spread, in the unit of the values."""

    mean: float
    spread: float | None
    """None for one value, which has none."""
    count: int


def mean_and_sd(values: Sequence[float]) -> Estimate | None:
    """Mean and sample standard deviation (n - 1); None without values. NaN where a value is not finite."""
    if not values:
        return None
    mean = mean_of(values)
    if len(values) == 1:
        return Estimate(mean, None, 1)
    variance = mean_of([(value - mean) ** 2 for value in values]) * len(values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance), len(values))


def paired_difference(values: Mapping[int, float], others: Mapping[int, float]) -> Estimate | None:
    """Mean of ``values[seed] - others[seed]`` over the seeds that both have, with its standard error.

    Runs with one seed share weights' and samples' randomness, so that much of the noise leaves the difference.
    """
    found = mean_and_sd([values[seed] - others[seed] for seed in values if seed in others])
    if found is None or found.spread is None:
        return found
    return Estimate(found.mean, found.spread / math.sqrt(found.count), found.count)


def mean_of(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value; NaN where one is not finite."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan

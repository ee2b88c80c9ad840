"""Lines and curves through measurements of which some are wrong: a process was held up, a page was cold."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def theil_sen(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept of the line whose slope is the median of those of all pairs: right while fewer than 29 % of
    the points are wrong (Sen, 1968).

    Args:
        x: At least two different values.
        y: As many.
    """
    pairs = itertools.combinations(zip(x, y, strict=True), 2)
    slope = float(np.median([(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs if x1 != x2]))
    return slope, float(np.median([b - slope * a for a, b in zip(x, y, strict=True)]))


def latency_and_slope(num_bytes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """alpha and beta of seconds = alpha + beta * bytes, by Huber's loss of the relative error: a point that is off by
    more than ``HUBER_FRACTION`` pulls as if it were off by that.

    Args:
        num_bytes: At least two different values.
        seconds: As many, positive.

    Returns:
        Neither is negative.
    """
    x, y = np.asarray(num_bytes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    weights = np.ones_like(y)
    alpha = beta = 0.0
    for _ in range(HUBER_ROUNDS):
        scale = np.sqrt(weights) / y
        (alpha, beta), *_ = np.linalg.lstsq(np.stack([scale, x * scale], axis=1), y * scale, rcond=None)
        if alpha < 0:  # a line through the origin
            alpha, beta = 0.0, float(np.sum(weights * x / y) / np.sum(weights * (x / y) ** 2))
        elif beta < 0:  # no line at all
            alpha, beta = float(np.sum(weights / y) / np.sum(weights / y**2)), 0.0
        error = np.abs((alpha + beta * x) / y - 1)
        weights = HUBER_FRACTION / np.maximum(error, HUBER_FRACTION)
    return float(alpha), float(beta)


HUBER_FRACTION = 0.1
HUBER_ROUNDS = 30


def smooth_rising(num_bytes: Sequence[float], seconds: Sequence[float]) -> Numbers:
    """``seconds`` as a curve that never falls and has no lone spikes.

    Runs over alpha + beta * bytes, so that the knee of that line is not taken for a spike: of the ratios to it medians
    of three neighbours, then neighbours that fall are pooled (isotonic regression, in logarithms).

    Args:
        num_bytes: Ascending.
        seconds: Positive.
    """
    y = np.asarray(seconds, dtype=np.float64)
    if len(y) < 3:
        return np.exp(pool_falling(np.log(y)))
    alpha, beta = latency_and_slope(num_bytes, seconds)
    line = alpha + beta * np.asarray(num_bytes, dtype=np.float64)
    return np.exp(pool_falling(np.log(line) + _medians_of_three(np.log(y / line))))


def _medians_of_three(y: Numbers) -> Numbers:
    """At the first by Tukey's rule: the median of it, its neighbour's median, and the line through the next two. The
    last stays: there curves bend upwards, and what is taken for a spike is the price of large messages."""
    inner = np.median(np.stack([y[:-2], y[1:-1], y[2:]]), axis=0)
    first = np.median([y[0], inner[0], 3 * inner[0] - 2 * inner[:2][-1]])
    return np.concatenate([[first], inner, y[-1:]])


def pool_falling(y: Numbers) -> Numbers:
    """The nearest sequence, in squares, that never falls (pool adjacent violators)."""
    pools: list[list[float]] = []
    for value in y.tolist():
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools]) if pools else y

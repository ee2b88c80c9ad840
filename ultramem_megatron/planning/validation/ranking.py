"""How good predictions are: do they order rightly, what does following them cost, how far off are they?"""

import math
from collections.abc import Sequence

import numpy as np


def kendall_tau(left: Sequence[float], right: Sequence[float]) -> float:
    """Kendall's tau-b: 1 when both order alike, -1 when one reverses the other, about 0 when they have nothing in
    common; ties count as neither (Kendall, 1945). NaN when one of both is constant.
    """
    a, b = (np.sign(np.subtract.outer(x, x)) for x in (np.asarray(left, float), np.asarray(right, float)))
    upper = np.triu_indices(len(left), 1)
    untied = float(np.sum(a[upper] != 0)) * float(np.sum(b[upper] != 0))
    return float(np.sum(a[upper] * b[upper])) / math.sqrt(untied) if untied else math.nan


def regret_fraction(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """What the choice of the smallest prediction takes longer than the best choice, as a fraction.

    Of equal predictions the first counts.
    """
    return measured[int(np.argmin(predicted))] / min(measured) - 1


def mean_error_fraction(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean absolute error as a fraction of what was measured (MAPE / 100)."""
    truth = np.asarray(measured, float)
    return float(np.mean(np.abs(np.asarray(predicted, float) - truth) / truth))


def coverage_fraction(low: Sequence[float], high: Sequence[float], measured: Sequence[float]) -> float:
    """Share of the measurements that lie in their intervals."""
    return float(np.mean([a <= m <= b for a, b, m in zip(low, high, measured, strict=True)]))

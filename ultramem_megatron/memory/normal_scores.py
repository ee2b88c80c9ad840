"""Expected size of the best scores, from which the initial gains follow (paper section 4, improved init).

All scores are taken as standard normal draws.
"""

import math
from statistics import NormalDist

# Blom's plotting position: E[i-th largest of n standard normals] = quantile of (n - i + 1 - a) / (n + 1 - 2a)
# with a = 3/8; its error is below 0.003 for the n and m of the paper (Blom, 1958)
BLOM_OFFSET = 0.375


def expected_top_mean(num_scores: int, top_m: int) -> float:
    """Mean of the ``top_m`` largest of ``num_scores`` standard normal draws, E[Y] in the paper.

    The paper takes it by Monte Carlo; the closed form has no noise, so every rank gets the same digits.
    """
    return sum(_expected_best(num_scores, top_m)) / top_m


def expected_best_products(num_scores: int, candidates: int, top_m: int) -> list[float]:
    """The ``top_m`` best products of one of the ``candidates`` best row and one of the best column scores.

    That is what a head picks while its Tucker core is near rank 1. Their mean exceeds even the square of
    ``expected_top_mean``, because the best pairs are picked: for 16 of 256, 6.2 against 3.8.
    """
    best = _expected_best(num_scores, candidates)
    return sorted((row * column for row in best for column in best), reverse=True)[:top_m]


def expected_best_sums(num_scores: int, candidates: int, top_m: int) -> list[float]:
    """The same with sums, which product keys rank by."""
    best = _expected_best(num_scores, candidates)
    return sorted((row + column for row in best for column in best), reverse=True)[:top_m]


def _expected_best(num_scores: int, top_m: int) -> list[float]:
    """Expected order statistics of standard normal draws, the largest first."""
    quantile = NormalDist().inv_cdf
    return [
        quantile((num_scores - i + 1 - BLOM_OFFSET) / (num_scores + 1 - 2 * BLOM_OFFSET)) for i in range(1, top_m + 1)
    ]


def value_std(expansion: int, picks: int, layers: int) -> float:
    """Standard deviation of table rows, sqrt(E / (2 m H L)): pooled and projected, the memory's output then has
    the variance 1 / (2 L) of an MLP branch, provided the mean score is 1 (paper section 4)."""
    return math.sqrt(expansion / (2 * picks * layers))

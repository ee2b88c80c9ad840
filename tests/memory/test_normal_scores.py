"""Expected sizes of the best scores, against Monte Carlo and published numbers."""

import math
from collections.abc import Callable
from statistics import fmean, pvariance

import pytest
import torch
from torch import Tensor

from ultramem_megatron.memory.normal_scores import (
    expected_best_products,
    expected_best_sums,
    expected_top_mean,
    value_std,
)


@pytest.mark.parametrize(("num_scores", "top_m", "mean"), [(3578, 42, 2.607), (3264, 35, 2.635), (2200, 16, 2.758)])
def test_the_sizes_of_the_paper(num_scores: int, top_m: int, mean: float) -> None:
    """Monte Carlo means for the grids of the 1.6B, 680M and 151M models."""
    assert expected_top_mean(num_scores, top_m) == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize(("num_scores", "top_m"), [(2, 1), (10, 3), (10, 10), (100, 1), (256, 16)])
def test_top_mean_against_monte_carlo(num_scores: int, top_m: int) -> None:
    draws = torch.randn(20_000, num_scores).topk(top_m, dim=-1).values.mean(dim=-1)
    error = float(draws.std()) / math.sqrt(len(draws))
    assert expected_top_mean(num_scores, top_m) == pytest.approx(float(draws.mean()), abs=0.01 + 4 * error)


PICKS = [(64, 4, 4), (192, 8, 8), (256, 16, 16), (2048, 16, 16), (256, 8, 24), (256, 32, 4)]
"""Scores of a side, candidates, picks: as many candidates as picks, fewer, and more."""


def drawn_picks(num_scores: int, candidates: int, top_m: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[2000, m] draws of the best of the candidates' pairs, the best first."""
    rows, columns = torch.randn(2, 2000, num_scores).topk(candidates, dim=-1).values
    return join(rows.unsqueeze(2), columns.unsqueeze(1)).flatten(1).topk(top_m, dim=-1).values


@pytest.mark.parametrize(("num_scores", "candidates", "top_m"), PICKS)
@pytest.mark.parametrize(
    ("expected", "join", "each", "mean"),
    [
        pytest.param(expected_best_products, torch.mul, 0.10, 0.05, id="products"),
        pytest.param(expected_best_sums, torch.add, 0.06, 0.03, id="sums"),
    ],
)
def test_picks_against_monte_carlo(
    expected: Callable[[int, int, int], list[float]],
    join: Callable[[Tensor, Tensor], Tensor],
    each: float,
    mean: float,
    num_scores: int,
    candidates: int,
    top_m: int,
) -> None:
    """Joined expected scores stand for expected joined scores; too small by a few percent (measured: 8 and 4 % for
    products, 5 and 3 % for sums), since the best pairs of each draw are taken, not the best of the means."""
    found = expected(num_scores, candidates, top_m)
    drawn = drawn_picks(num_scores, candidates, top_m, join).mean(dim=0)
    assert len(found) == top_m and found == sorted(found, reverse=True)
    assert found == pytest.approx(drawn.tolist(), rel=each)
    assert 0 < 1 - fmean(found) / float(drawn.mean()) < mean


@pytest.mark.parametrize(("num_scores", "candidates", "top_m"), PICKS)
def test_their_spread_is_small(num_scores: int, candidates: int, top_m: int) -> None:
    """UltraMemV2 divides values by (1 + s^2) ** 0.25, s^2 the picks' variance over their squared mean. The list leaves
    out that draws differ; with it s^2 stays below 0.1, so that 2 % of a standard deviation depend on it."""
    found = expected_best_products(num_scores, candidates, top_m)
    drawn = drawn_picks(num_scores, candidates, top_m, torch.mul)
    spread = float(drawn.var() / drawn.mean() ** 2)
    assert 0 < pvariance(found) / fmean(found) ** 2 < spread < 0.1


def test_a_single_pick_joins_the_best() -> None:
    best = expected_top_mean(100, 1)
    assert expected_best_products(100, 5, 1) == [pytest.approx(best**2)]
    assert expected_best_sums(100, 5, 1) == [pytest.approx(2 * best)]


def test_picks_by_hand() -> None:
    """Two normal scores lie at +- 0.589 (Blom): of the four pairs two products are equal and positive."""
    best = expected_top_mean(2, 1)
    assert expected_best_products(2, 2, 4) == pytest.approx([best**2] * 2 + [-(best**2)] * 2)
    assert expected_best_sums(2, 2, 4) == pytest.approx([2 * best, 0, 0, -2 * best])


def test_pick_mean_is_positive_where_all_keys_are_kept() -> None:
    """The mean of all scores is 0, and a gain of 1 / sqrt(0) would be infinite."""
    assert expected_top_mean(4, 4) == pytest.approx(0, abs=1e-12)
    assert fmean(expected_best_products(4, 4, 4)) > 0.5
    assert fmean(expected_best_sums(4, 4, 4)) > 0.5


@pytest.mark.parametrize(("picks", "layers", "std"), [(32, 12, 0.0722), (70, 24, 0.0345), (84, 32, 0.0273)])
def test_value_std_of_the_paper(picks: int, layers: int, std: float) -> None:
    assert value_std(4, picks, layers) == pytest.approx(std, abs=0.00005)

"""Expected sizes of the best scores, against Monte Carlo and published numbers."""

import math

import pytest
import torch

from ultramem_megatron.memory.normal_scores import expected_pick_mean, expected_top_mean, value_std


@pytest.mark.parametrize(("num_scores", "top_m", "mean"), [(3578, 42, 2.607), (3264, 35, 2.635), (2200, 16, 2.758)])
def test_the_sizes_of_the_paper(num_scores: int, top_m: int, mean: float) -> None:
    """Monte Carlo means for the grids of the 1.6B, 680M and 151M models."""
    assert expected_top_mean(num_scores, top_m) == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize(("num_scores", "top_m"), [(2, 1), (10, 3), (10, 10), (100, 1), (256, 16)])
def test_top_mean_against_monte_carlo(num_scores: int, top_m: int) -> None:
    draws = torch.randn(20_000, num_scores).topk(top_m, dim=-1).values.mean(dim=-1)
    error = float(draws.std()) / math.sqrt(len(draws))
    assert expected_top_mean(num_scores, top_m) == pytest.approx(float(draws.mean()), abs=0.01 + 4 * error)


@pytest.mark.parametrize(("num_scores", "top_m"), [(64, 4), (192, 8), (256, 16), (2048, 16)])
def test_pick_mean_against_monte_carlo(num_scores: int, top_m: int) -> None:
    """Products of expected scores stand for expected products: within 5 %."""
    rows, columns = torch.randn(2, 500, num_scores).topk(top_m, dim=-1).values
    picks = (rows.unsqueeze(2) * columns.unsqueeze(1)).flatten(1).topk(top_m, dim=-1).values
    assert expected_pick_mean(num_scores, top_m) == pytest.approx(float(picks.mean()), rel=0.05)


def test_a_single_pick_is_the_product_of_the_best() -> None:
    assert expected_pick_mean(100, 1) == pytest.approx(expected_top_mean(100, 1) ** 2)


def test_pick_mean_is_positive_where_all_keys_are_kept() -> None:
    """The mean of all scores is 0, and a gain of 1 / sqrt(0) would be infinite."""
    assert expected_top_mean(4, 4) == pytest.approx(0, abs=1e-12)
    assert expected_pick_mean(4, 4) > 0.5


@pytest.mark.parametrize(("picks", "layers", "std"), [(32, 12, 0.0722), (70, 24, 0.0345), (84, 32, 0.0273)])
def test_value_std_of_the_paper(picks: int, layers: int, std: float) -> None:
    assert value_std(4, picks, layers) == pytest.approx(std, abs=0.00005)

"""Numbers by which a cost model is judged, by hand."""

import math

import pytest

from ultramem_megatron.planning.validation.ranking import (
    coverage_fraction,
    kendall_tau,
    mean_error_fraction,
    regret_fraction,
)


@pytest.mark.parametrize(
    ("left", "right", "tau"),
    [
        pytest.param([1, 2, 3, 4], [10, 20, 30, 40], 1.0, id="alike"),
        pytest.param([1, 2, 3, 4], [4, 3, 2, 1], -1.0, id="reversed"),
        pytest.param([1, 2, 3, 4], [2, 1, 3, 4], 4 / 6, id="one pair of six wrong"),
        pytest.param([1, 1, 2], [1, 2, 3], 2 / math.sqrt(2 * 3), id="a tie"),
    ],
)
def test_tau(left: list[float], right: list[float], tau: float) -> None:
    assert kendall_tau(left, right) == pytest.approx(tau)


def test_tau_of_a_constant_is_unknown() -> None:
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))


def test_regret_is_what_the_choice_costs_beyond_the_best() -> None:
    assert regret_fraction([1.0, 2.0, 3.0], [5.0, 4.0, 9.0]) == 0.25
    assert regret_fraction([2.0, 1.0, 3.0], [5.0, 4.0, 9.0]) == 0.0
    assert regret_fraction([1.0, 1.0], [3.0, 2.0]) == 0.5  # of equal predictions the first counts


def test_error_and_coverage() -> None:
    assert mean_error_fraction([1.0, 3.0], [2.0, 2.0]) == 0.5
    assert coverage_fraction([0.0, 2.0, 5.0], [1.0, 3.0, 6.0], [1.0, 4.0, 5.5]) == pytest.approx(2 / 3)

"""Distinct rows and the busiest owner, against draws."""

import random
from collections import Counter
from itertools import accumulate

import pytest

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.skew import (
    busiest_owner_factor,
    check_exponent,
    expected_distinct,
    top_row_fraction,
)


def draw(rng: random.Random, rows: int, exponent: float, count: int) -> list[int]:
    weights = list(accumulate((i + 1) ** -exponent for i in range(rows)))
    return rng.choices(range(rows), cum_weights=weights, k=count)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5])
def test_distinct_rows_are_those_of_draws(exponent: float) -> None:
    rng = random.Random(3)
    found = [len(set(draw(rng, 2000, exponent, 1500))) for _ in range(40)]
    assert sum(found) / 40 == pytest.approx(expected_distinct(1500, 2000, exponent), rel=0.02)


def test_more_skew_means_fewer_distinct_rows() -> None:
    counts = [expected_distinct(1e6, 3_200_521, exponent) for exponent in (0, 0.5, 1, 1.5, 2)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0] / 100


def test_the_top_row_has_its_share_but_no_more_than_a_pick_a_token() -> None:
    assert top_row_fraction(1000, 0.0, 4) == pytest.approx(1 / 1000)
    harmonic = sum(1 / i for i in range(1, 1001))
    assert top_row_fraction(1000, 1.0, 4) == pytest.approx(1 / harmonic, rel=0.01)
    assert top_row_fraction(1000, 3.0, 4) == 0.25


def test_the_busiest_owner_against_draws() -> None:
    """32 owners, rows dealt at random, a row as often as it is picked."""
    rng = random.Random(5)
    for exponent in (0.0, 1.0):
        ratios = []
        for _ in range(30):
            owner = [rng.randrange(32) for _ in range(5000)]
            loads = Counter(owner[row] for row in draw(rng, 5000, exponent, 6400))
            ratios.append(max(loads.values()) / 200)
        expected = busiest_owner_factor(200, 32, top_row_fraction(5000, exponent, 1))
        assert sum(ratios) / 30 == pytest.approx(expected, rel=0.25)
    assert busiest_owner_factor(100, 1, 0.5) == 1


def test_an_exponent_that_cannot_be_is_refused() -> None:
    for bad in (-1, 9, float("nan")):
        with pytest.raises(PlanError, match="Zipf exponents lie from 0"):
            check_exponent(bad)

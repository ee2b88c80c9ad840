"""How far two curves lie apart."""

import math

import pytest

from ultramem_megatron.testing.layouts import Curve


@pytest.mark.parametrize(
    ("losses", "apart"),
    [([2.0, 4.0], 0.0), ([2.5, 4.4], 0.25), ([2.5, math.nan], math.inf), ([math.nan, 4.0], math.inf)],
)
def test_no_curve_is_near_one_without_numbers(losses: list[float], apart: float) -> None:
    of_losses, of_norms = Curve(losses, [1.0, 1.0]).largest_difference(Curve([2.0, 4.0], [1.0, 2.0]))
    assert (of_losses, of_norms) == (pytest.approx(apart), 0.5)

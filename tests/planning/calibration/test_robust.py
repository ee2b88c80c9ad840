"""Lines and curves that a few wrong points do not bend."""

import numpy as np
import pytest

from ultramem_megatron.planning.calibration.robust import (
    latency_and_slope,
    pool_falling,
    smooth_rising,
    theil_sen,
)


def test_a_line_is_found_behind_wild_points() -> None:
    x = [float(i) for i in range(1, 12)]
    y = [3.0 * value + 2.0 for value in x]
    y[3], y[8] = 900.0, 0.0
    assert theil_sen(x, y) == pytest.approx((3.0, 2.0))


def test_latency_and_slope_are_found_behind_wild_points() -> None:
    sizes = [float(2**i) for i in range(8, 24)]
    times = [2e-4 + size * 1e-9 for size in sizes]
    times[3], times[11] = 5 * times[3], 5 * times[11]
    assert latency_and_slope(sizes, times) == pytest.approx((2e-4, 1e-9), rel=0.05)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        pytest.param([1.0, 3.0, 5.0, 7.0], (0.0, 1.7), id="a latency below 0"),
        pytest.param([4.0, 3.0, 2.0, 1.0], (2.0, 0.0), id="a slope below 0"),
    ],
)
def test_neither_is_negative(times: list[float], expected: tuple[float, float]) -> None:
    found = latency_and_slope([1.0, 2.0, 3.0, 4.0], times)
    assert min(found) == 0.0
    assert found == pytest.approx(expected, abs=0.5)


def test_falling_neighbours_are_pooled_to_their_mean() -> None:
    assert pool_falling(np.array([1.0, 4.0, 2.0, 3.0, 5.0])).tolist() == [1.0, 3.0, 3.0, 3.0, 5.0]
    assert pool_falling(np.array([3.0, 2.0, 1.0])).tolist() == [2.0, 2.0, 2.0]


def test_the_price_of_the_largest_is_not_taken_for_a_spike() -> None:
    sizes = [float(4**i) for i in range(8)]
    times = [1e-4 + 1e-7 * size for size in sizes]
    times[-1] *= 3
    assert smooth_rising(sizes, times)[-1] == pytest.approx(times[-1])


def test_a_curve_rises_though_a_point_falls() -> None:
    sizes = [float(4**i) for i in range(8)]
    truth = np.array([1e-4 + 1e-7 * size for size in sizes])
    noisy = truth.copy()
    noisy[4] *= 0.3
    smooth = smooth_rising(sizes, noisy.tolist())
    assert np.all(np.diff(smooth) >= 0)
    np.testing.assert_allclose(smooth, truth, rtol=0.02)

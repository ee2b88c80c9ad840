"""Times that curves give, and the shape of a profile."""

import math

import pytest

from ultramem_megatron.planning.profile import CollectiveCurves, Curve, Fit, RowEfficiency, Trust, numbers_of
from ultramem_megatron.planning.profile_file import BUILT_IN, built_in_profile


def test_without_knots_a_curve_is_alpha_beta() -> None:
    curve = Curve(ranks=2, latency_seconds=1e-5, bytes_per_second=1e9)
    assert curve.seconds(0) == 1e-5
    assert curve.seconds(1e6) == pytest.approx(1e-5 + 1e-3)


def test_knots_are_joined_by_straight_lines() -> None:
    curve = Curve(ranks=2, latency_seconds=1.0, bytes_per_second=10, knots=((100, 3.0), (200, 4.0)))
    assert [curve.seconds(size) for size in (0, 50, 100, 150, 200, 300)] == [1, 2, 3, 3.5, 4, 14]


def test_between_two_group_sizes_time_is_linear_in_the_logarithm() -> None:
    curves = CollectiveCurves(
        curves=(
            Curve(ranks=2, latency_seconds=1.0, bytes_per_second=1),
            Curve(ranks=8, latency_seconds=3.0, bytes_per_second=1),
        ),
        peer_seconds=0.5,
    )
    assert [curves.seconds(0, ranks) for ranks in (2, 4, 8, 10)] == pytest.approx([1, 2, 3, 4])


def test_rows_below_a_sector_waste_the_rest_of_it() -> None:
    efficiency = RowEfficiency(knots=((32, 0.4), (128, 0.8)))
    assert efficiency.fraction(8) == pytest.approx(0.1)
    assert efficiency.fraction(64) == pytest.approx(0.6)
    assert efficiency.fraction(4096) == 0.8


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_profile_names_a_source_for_each_number(name: str) -> None:
    profile = built_in_profile(name)
    assert profile.name == name
    for path in numbers_of(profile):
        source = profile.source(path)
        assert source.trust is not Trust.MEASURED and len(source.source) > 15
    assert profile.fit is None


def test_the_a100_profile_holds_the_published_points() -> None:
    """nccl#1576: 192 GB/s over 8 cards; nccl#1138: 0.79 to 0.83 of 25 GB/s; data sheet: 2,039 GB/s."""
    profile = built_in_profile("dgx-a100-80g")
    assert 8 * profile.network.all_gather.curves[0].bytes_per_second == pytest.approx(192e9)
    assert 0.79 <= profile.network.all_to_all.curves[0].bytes_per_second / 25e9 <= 0.83
    assert profile.memory_bytes_per_second == 2.039e12
    assert 220e9 <= profile.node.all_to_all.curves[0].bytes_per_second <= 235e9


def test_uncertainty_is_that_of_the_fit_or_of_the_source() -> None:
    profile = built_in_profile("dgx-a100-80g")
    assert profile.uncertainty_fraction("scatter") > profile.uncertainty_fraction("node.all_gather")
    fit = Fit(date="2026-11-23", fingerprint={"torch": "2.13.0"}, error_fractions={"node.all_gather": 0.07})
    measured = profile.model_copy(update={"fit": fit})
    assert measured.uncertainty_fraction("node.all_gather") == 0.07
    assert math.isclose(measured.uncertainty_fraction("scatter"), profile.uncertainty_fraction("scatter"))

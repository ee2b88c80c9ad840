"""From points to a profile: known numbers are found, noise is survived, a bad fit is refused with its reason."""

from pathlib import Path

import pytest

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.calibration.fit import Machine, fit_imported, fit_profile
from ultramem_megatron.planning.profile import ClusterProfile, Collective, FitPoint, Trust
from ultramem_megatron.planning.profile_file import built_in_profile, load_profile, save_profile
from ultramem_megatron.testing.calibration_points import (
    BF16_RATE,
    BYTES_PER_SECOND,
    FINGERPRINT,
    FP32_RATE,
    LATENCY_SECONDS,
    MEMORY_RATE,
    SORT_RATE,
    collective_points,
    machine_points,
    point,
)

MACHINE = Machine(name="here", ranks_per_node=4, memory_bytes=2**30)


def fit(points: list[FitPoint], **options: float) -> ClusterProfile:
    return fit_profile(points, MACHINE, FINGERPRINT, built_in_profile("cpu-loopback"), **options)


def test_the_numbers_of_a_machine_are_found() -> None:
    profile = fit(machine_points())
    assert profile.memory_bytes_per_second == pytest.approx(MEMORY_RATE)
    assert profile.gather.fraction(64) == pytest.approx(0.5)
    assert profile.scatter.fraction(512) == pytest.approx(0.25)
    assert profile.gemm.bf16_flops_per_second == pytest.approx(BF16_RATE)
    assert profile.gemm.fp32_flops_per_second == pytest.approx(FP32_RATE)
    assert profile.launch_seconds == 3e-6
    assert profile.sort_items_per_second == pytest.approx(SORT_RATE)
    assert profile.pool_forward is not None
    assert profile.pool_forward.fraction(64) == pytest.approx(0.4)
    assert profile.pool_backward is not None
    assert profile.pool_backward.fraction(64) == pytest.approx(0.1)
    assert profile.overlap_fraction == pytest.approx(0.75)  # of 1 s, 0.75 s went beside the products
    for collective in Collective:
        curves = profile.node.of(collective)
        assert curves.peer_seconds == pytest.approx(LATENCY_SECONDS, rel=1e-3)
        for ranks in (2, 4):
            for size in (100.0, 3000.0, 1e5, 1e8):
                expected = ranks * LATENCY_SECONDS + size / BYTES_PER_SECOND
                assert curves.seconds(size, ranks) == pytest.approx(expected, rel=0.03)


def test_what_was_measured_says_so_and_the_rest_keeps_its_source() -> None:
    base, profile = built_in_profile("cpu-loopback"), fit(machine_points())
    assert profile.source("node.all_gather").trust is Trust.MEASURED
    assert "4 processes on 2 cores" in profile.source("gather").source
    assert profile.source("network.all_gather") == base.source("network.all_gather")
    assert profile.network == base.network
    assert profile.fit is not None
    assert profile.fit.fingerprint["torch"] == "2.13.0"
    assert max(profile.fit.error_fractions.values()) < 0.03


def test_intervals_hold_most_of_the_points_held_out() -> None:
    path = "node.all_to_all"
    points = [p for p in machine_points() if p.path != path]
    # of the 8 sizes held out two take longer, one by half and one twice as long
    points += collective_points(path, 4, lambda index: {5: 1.5, 9: 2.0}.get(index, 1.0))
    fitted = fit(points, max_error_fraction=1.0)
    assert fitted.fit is not None
    assert fitted.fit.error_fractions[path] == pytest.approx((0.5 / 1.5 + 0.5) / 8, rel=0.05)
    assert fitted.uncertainty_fraction(path) == pytest.approx(0.5, rel=0.1)


def test_new_memory_is_a_curve_that_never_falls() -> None:
    assert fit(machine_points()).new_memory is None
    points = [point("new_memory", 4, size, seconds) for size, seconds in ((1e6, 1e-9), (3e6, 0.2), (2e6, 0.4))]
    profile = fit([*machine_points(), *points])
    assert profile.new_memory is not None
    assert profile.new_memory.knots == ((1e6, 1e-9), (2e6, pytest.approx(0.3)), (3e6, pytest.approx(0.3)))
    assert profile.source("new_memory").trust is Trust.MEASURED


def test_one_process_has_no_collectives_and_keeps_those_of_the_base() -> None:
    base = built_in_profile("cpu-loopback")
    profile = fit([p for p in machine_points() if not p.path.startswith(("node.", "overlap."))])
    assert (profile.node, profile.overlap_fraction) == (base.node, base.overlap_fraction)
    assert profile.source("overlap_fraction") == base.source("overlap_fraction")
    assert profile.source("gather").trust is Trust.MEASURED


def test_a_profile_is_read_back_as_it_was_fitted(tmp_path: Path) -> None:
    profile = fit(machine_points())
    save_profile(profile, tmp_path / "here.json")
    assert load_profile(tmp_path / "here.json") == profile


def test_one_wild_point_does_not_bend_a_curve() -> None:
    path = "node.all_to_all"
    points = [p for p in machine_points() if p.path != path]
    points += collective_points(path, 4, lambda index: 20.0 if index == 6 else 1.0)
    curves = fit(points).node.all_to_all
    expected = 4 * LATENCY_SECONDS + 2**12 / BYTES_PER_SECOND
    assert curves.seconds(2**12, 4) == pytest.approx(expected, rel=0.05)


def test_a_bad_fit_is_refused_with_path_worst_point_and_remedy() -> None:
    path = "node.reduce_scatter"
    points = [p for p in machine_points() if p.path != path]
    points += collective_points(path, 4, lambda index: 3.0 if index % 2 else 1.0)
    with pytest.raises(PlanError, match=r"node\.reduce_scatter misses .* by 6\d%.*over 4 ranks took.*quiet machine"):
        fit(points)
    assert fit(points, max_error_fraction=0.7).name == "here"


def test_too_few_sizes_are_refused() -> None:
    points = [p for p in machine_points() if p.path != "node.all_reduce" or p.num_bytes < 200]
    with pytest.raises(PlanError, match=r"node\.all_reduce over 2 ranks: 1 message sizes to fit a curve"):
        fit(points)


def test_imported_collectives_replace_those_of_the_base_alone() -> None:
    base = built_in_profile("dgx-a100-80g")
    points = collective_points("network.all_gather", 16)
    profile = fit_imported(points, base, "ours", "2026-11-23", max_error_fraction=0.1)
    assert profile.network.all_gather.curves[0].ranks == 16
    assert profile.network.all_gather.peer_seconds == base.network.all_gather.peer_seconds
    assert profile.source("network.all_gather").source.startswith("nccl-tests")
    assert (profile.node, profile.gemm, profile.network.all_to_all) == (base.node, base.gemm, base.network.all_to_all)

"""A calibrated profile used elsewhere, or later, is flagged."""

import pytest

from ultramem_megatron.planning.calibration.fit import Machine, fit_profile
from ultramem_megatron.planning.cluster import ClusterSpec, local_cluster
from ultramem_megatron.planning.profile_file import built_in_profile
from ultramem_megatron.planning.staleness import stale_reasons, stale_warning
from ultramem_megatron.testing.calibration_points import FINGERPRINT, machine_points


def cluster(ranks: int) -> ClusterSpec:
    machine = Machine(name="here", ranks_per_node=4, memory_bytes=2**30)
    base = built_in_profile("cpu-loopback")
    return local_cluster(ranks, fit_profile(machine_points(), machine, FINGERPRINT, base))


def test_nothing_is_said_where_nothing_changed() -> None:
    assert stale_reasons(cluster(4), FINGERPRINT.flat()) == []
    assert stale_warning(cluster(4), FINGERPRINT.flat()) == ""


def test_another_number_of_processes_and_another_torch_are_flagged() -> None:
    here = {**FINGERPRINT.flat(), "torch": "2.9.1"}
    assert stale_reasons(cluster(8), here) == ["processes 4 there, 8 here", "torch 2.13.0 there, 2.9.1 here"]
    assert "profile here was measured in other circumstances" in stale_warning(cluster(8), here)


def test_a_login_node_without_torch_still_sees_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultramem_megatron.planning.staleness._installed", dict)
    assert stale_reasons(cluster(4)) == []
    assert stale_reasons(cluster(2)) == ["processes 4 there, 2 here"]


def test_the_installed_torch_is_known_without_a_run() -> None:
    assert [reason for reason in stale_reasons(cluster(4)) if reason.startswith("torch 2.13.0 there")]


def test_a_profile_that_was_never_measured_is_not_stale() -> None:
    assert stale_reasons(local_cluster(4)) == []

"""Whether a calibrated profile still tells of the machine: what has changed since it was measured."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.fingerprint import flat_differences

Facts = Mapping[str, str | int]


def stale_reasons(cluster: ClusterSpec, here: Facts | None = None) -> list[str]:
    """What differs between the calibration of the cluster's profile and its use, each in words; none for a profile that
    was never measured, whose numbers carry their own trust.

    Args:
        cluster: What is planned for.
        here: Of the ranks of a run, as ``Fingerprint.flat``; a planner without any knows only the version of torch.
    """
    fit = cluster.profile.fit
    if fit is None or not fit.fingerprint:
        return []
    known: Facts = here if here is not None else _installed()
    return flat_differences(fit.fingerprint, {**known, "hosts": cluster.nodes, "processes": cluster.num_ranks})


def stale_warning(cluster: ClusterSpec, here: Facts | None = None) -> str:
    """One paragraph for a report or a log; empty when nothing has changed."""
    reasons = stale_reasons(cluster, here)
    if not reasons:
        return ""
    return (
        f"Stale: profile {cluster.profile.name} was measured in other circumstances ({'; '.join(reasons)}), so its "
        "seconds may be off by more than their intervals say. Measure anew with `ultramem calibrate`."
    )


def _installed() -> Facts:
    """Torch is not imported: a login node may lack it, and then nothing is said about it."""
    try:
        return {"torch": version("torch")}
    except PackageNotFoundError:
        return {}

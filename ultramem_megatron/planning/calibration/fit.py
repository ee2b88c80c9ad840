"""Points -> ``ClusterProfile``, or the reason why they are no good."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.calibration.fit_curves import (
    HeldOut,
    collective_held_out,
    fit_collective,
    fit_new_memory,
    fit_rows,
    rows_held_out,
    worst_ratio,
)
from ultramem_megatron.planning.fingerprint import Fingerprint
from ultramem_megatron.planning.profile import (
    ClusterProfile,
    Collective,
    CollectiveCurves,
    Fit,
    FitPoint,
    GemmRates,
    Level,
    LevelCurves,
    Source,
    Trust,
)
from ultramem_megatron.units import format_bytes, format_seconds

MAX_ERROR_FRACTION = 0.15
"""Mean error over the points held out beyond which a fit is refused."""
FEWEST_SIZES = 3
"""Messages of different sizes that a curve needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What is known without measuring."""

    name: str
    ranks_per_node: int
    memory_bytes: int
    """Of one rank."""


def fit_profile(
    points: Sequence[FitPoint],
    machine: Machine,
    fingerprint: Fingerprint,
    base: ClusterProfile,
    *,
    max_error_fraction: float = MAX_ERROR_FRACTION,
) -> ClusterProfile:
    """The profile that ``points`` tell of; what they do not tell is that of ``base``, with its sources.

    Raises:
        PlanError: A fit misses the points held out by more than ``max_error_fraction`` on average, or points lack.
    """
    copied = _only(points, "memory")
    memory_rate = copied.num_bytes / copied.seconds
    rows = {name: fit_rows(_of(points, name), memory_rate) for name in _ROWS}
    levels, of_collectives = _fit_levels(points, base)
    held_out = {name: rows_held_out(rows[name], _of(points, name), memory_rate) for name in rows} | of_collectives
    overlap, new_memory = _overlap(points), fit_new_memory(_of(points, "new_memory"))
    measured = [*_MEASURED, *of_collectives]
    measured += [] if overlap is None else ["overlap_fraction"]
    measured += [] if new_memory is None else ["new_memory"]
    _refuse_bad(held_out, points, levels, max_error_fraction)
    return base.model_copy(
        update={
            "name": machine.name,
            "ranks_per_node": machine.ranks_per_node,
            "memory_bytes": machine.memory_bytes,
            "memory_bytes_per_second": memory_rate,
            **rows,
            "new_memory": new_memory,
            "sort_items_per_second": 1 / _only(points, "sort").seconds,
            "gemm": _gemm(points),
            "launch_seconds": _only(points, "launch").seconds,
            "overlap_fraction": base.overlap_fraction if overlap is None else overlap,
            **{level.value: curves for level, curves in levels.items()},
            "sources": _sources(base, measured, fingerprint),
            "fit": Fit(
                date=fingerprint.date,
                fingerprint=fingerprint.flat(),
                points=tuple(points),
                **_errors(held_out),
            ),
        }
    )


def fit_imported(
    points: Sequence[FitPoint], base: ClusterProfile, name: str, date: str, *, max_error_fraction: float
) -> ClusterProfile:
    """``base`` with the collectives that ``points`` tell of.

    Args:
        points: Of collectives alone.
        base: Has all else.
        name: Of the new profile.
        date: ISO 8601.
        max_error_fraction: As in ``fit_profile``.

    Raises:
        PlanError: As ``fit_profile``.
    """
    levels, held_out = _fit_levels(points, base)
    _refuse_bad(held_out, points, levels, max_error_fraction)
    before = base.fit or Fit(date=date, fingerprint={}, error_fractions={})
    kept = [point for point in before.points if point.path not in held_out]
    source = Source(trust=Trust.MEASURED, source=f"nccl-tests, read by ultramem calibrate, {date}")
    return base.model_copy(
        update={
            "name": name,
            **{level.value: curves for level, curves in levels.items()},
            "sources": {**base.sources, **dict.fromkeys(held_out, source)},
            "fit": before.model_copy(
                update={
                    "date": date,
                    **{name: {**getattr(before, name), **of_path} for name, of_path in _errors(held_out).items()},
                    "points": (*kept, *points),
                }
            ),
        }
    )


_ROWS = ("gather", "scatter", "pool_forward", "pool_backward")
_MEASURED = (
    *("ranks_per_node", "memory_bytes", "memory_bytes_per_second", "gemm"),
    *_ROWS,
    *("sort_items_per_second", "launch_seconds"),
)


def _errors(held_out: Mapping[str, HeldOut]) -> dict[str, dict[str, float]]:
    """What a ``Fit`` says of them."""
    return {
        "error_fractions": {path: one.mean_error_fraction for path, one in held_out.items()},
        "interval_fractions": {path: one.interval_fraction for path, one in held_out.items()},
    }


def _fit_levels(
    points: Sequence[FitPoint], base: ClusterProfile
) -> tuple[dict[Level, LevelCurves], dict[str, HeldOut]]:
    """Curves of both levels, and what those that were fitted say of the points held out, by path."""
    levels, held_out = {}, {}
    for level in Level:
        curves: dict[str, CollectiveCurves] = {}
        for collective in Collective:
            path, given = f"{level}.{collective}", base.level(level).of(collective)
            own = _of(points, path)
            if own:
                _refuse_few(path, own)
                given = fit_collective(own, given.peer_seconds)
                held_out[path] = collective_held_out(given, own)
            curves[str(collective)] = given
        levels[level] = LevelCurves(**curves)
    return levels, held_out


def _refuse_few(path: str, points: Sequence[FitPoint]) -> None:
    for ranks in {point.ranks for point in points}:
        for held_out, least, what in ((False, FEWEST_SIZES, "fit a curve"), (True, 1, "tell its error")):
            count = sum(point.ranks == ranks and point.held_out is held_out for point in points)
            if count < least:
                raise PlanError(
                    f"{path} over {ranks} ranks: {count} message sizes to {what}, at least {least} are needed; "
                    "measure more sizes, each twice the one before"
                )


def _refuse_bad(
    held_out: Mapping[str, HeldOut], points: Sequence[FitPoint], levels: dict[Level, LevelCurves], allowed: float
) -> None:
    errors = {path: one.mean_error_fraction for path, one in held_out.items()}
    path = max(errors, key=lambda one: errors[one])
    if errors[path] <= allowed:
        return
    text = f"the fit of {path} misses its held-out points by {errors[path]:.0%} on average, allowed are {allowed:.0%}"
    if "." in path:
        level, collective = path.split(".")
        curves = levels[Level(level)].of(Collective(collective))
        worst = worst_ratio(curves, _of(points, path))
        text += (
            f" (worst: {format_bytes(worst.num_bytes)} over {worst.ranks} ranks took {format_seconds(worst.seconds)}, "
            f"fitted {format_seconds(curves.seconds(worst.num_bytes, worst.ranks))})"
        )
    raise PlanError(f"{text}; other work disturbed the measurement: repeat it on a quiet machine, or raise --max-error")


def _gemm(points: Sequence[FitPoint]) -> GemmRates:
    """Median rate over the sides measured."""
    rates = {}
    for name, element_bytes in (("bf16", 2), ("fp32", 4)):
        products = _of(points, f"gemm.{name}")
        # three matrices of side^2 elements
        sides = [(point.num_bytes / 3 / element_bytes) ** 0.5 for point in products]
        flops = [2 * side**3 / point.seconds for side, point in zip(sides, products, strict=True)]
        rates[f"{name}_flops_per_second"] = float(np.median(flops))
    return GemmRates(**rates)


def _overlap(points: Sequence[FitPoint]) -> float | None:
    """Share of the shorter of two works that went beside the other; None of one process, which has no collectives."""
    if not any(point.path.startswith("overlap.") for point in points):
        return None
    products, collective, both = (_only(points, f"overlap.{one}").seconds for one in ("products", "collective", "both"))
    return min(1.0, max(0.0, (products + collective - both) / min(products, collective)))


def _sources(base: ClusterProfile, measured: Sequence[str], fingerprint: Fingerprint) -> dict[str, Source]:
    text = f"ultramem calibrate, {fingerprint.processes} processes on {fingerprint.hardware}, {fingerprint.date}"
    return {**base.sources, **dict.fromkeys(measured, Source(trust=Trust.MEASURED, source=text))}


def _of(points: Sequence[FitPoint], path: str) -> list[FitPoint]:
    return [point for point in points if point.path == path]


def _only(points: Sequence[FitPoint], path: str) -> FitPoint:
    found = _of(points, path)
    assert len(found) == 1, f"{len(found)} points of {path}"
    return found[0]

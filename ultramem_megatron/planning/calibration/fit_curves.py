"""Curves of a profile from points: seconds of a collective over bytes by size of group, rows over their width."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ultramem_megatron.planning.calibration.robust import pool_falling, smooth_rising, theil_sen
from ultramem_megatron.planning.profile import (
    INTERVAL_SHARE,
    CollectiveCurves,
    Curve,
    FitPoint,
    NewMemory,
    RowEfficiency,
)
from ultramem_megatron.planning.validation.ranking import mean_error_fraction

TAIL_POINTS = 4
"""Largest messages, whose times give the bandwidth."""


def fit_collective(points: Sequence[FitPoint], peer_seconds: float) -> CollectiveCurves:
    """One curve for each size of group.

    Args:
        points: Of one collective on one level; those held out are not looked at.
        peer_seconds: Taken where only one size of group was measured.
    """
    sizes = sorted({point.ranks for point in points})
    curves = [_fit_curve(ranks, [p for p in points if p.ranks == ranks and not p.held_out]) for ranks in sizes]
    if len(curves) > 1:
        slope, _ = theil_sen(sizes, [curve.latency_seconds for curve in curves])
        peer_seconds = max(0.0, slope)
    return CollectiveCurves(curves=tuple(curves), peer_seconds=peer_seconds)


def _fit_curve(ranks: int, points: Sequence[FitPoint]) -> Curve:
    ordered = sorted(points, key=lambda point: point.num_bytes)
    sizes, seconds = [point.num_bytes for point in ordered], [point.seconds for point in ordered]
    rising = smooth_rising(sizes, seconds).tolist()
    knots = tuple(zip(sizes, rising, strict=True))[1:]
    return Curve(ranks=ranks, latency_seconds=rising[0], bytes_per_second=_tail_rate(knots), knots=knots)


def _tail_rate(knots: Sequence[tuple[float, float]]) -> float:
    """Bytes per second of the largest messages; where their time does not rise, what the largest reaches in all."""
    tail = knots[-TAIL_POINTS:]
    slope = theil_sen([size for size, _ in tail], [time for _, time in tail])[0] if len(tail) > 1 else 0.0
    size, time = knots[-1]
    return 1 / slope if slope > 0 else size / time


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a fit says of the points that it never saw, and what they are."""

    fitted: list[float]
    measured: list[float]

    @property
    def mean_error_fraction(self) -> float:
        """Mean absolute error, of the measured."""
        return mean_error_fraction(self.fitted, self.measured)

    @property
    def interval_fraction(self) -> float:
        """The error, of the fitted, that ``INTERVAL_SHARE`` of the points stay below."""
        errors = np.abs(np.asarray(self.measured) / np.asarray(self.fitted) - 1)
        # with few points a share of them says little: the next larger error, not one between two
        return float(np.quantile(errors, INTERVAL_SHARE, method="higher"))


def collective_held_out(curves: CollectiveCurves, points: Sequence[FitPoint]) -> HeldOut:
    """Of one collective."""
    held_out = [point for point in points if point.held_out]
    fitted = [curves.seconds(point.num_bytes, point.ranks) for point in held_out]
    return HeldOut(fitted, [point.seconds for point in held_out])


def fit_rows(points: Sequence[FitPoint], memory_bytes_per_second: float) -> RowEfficiency:
    """Useful bytes over the memory's, by width.

    Args:
        points: Seconds of a row by its width; those held out are not looked at.
        memory_bytes_per_second: The whole.
    """
    fitted = sorted((p for p in points if not p.held_out), key=lambda point: point.num_bytes)
    widths = [point.num_bytes for point in fitted]
    seconds = smooth_rising(widths, [point.seconds for point in fitted]).tolist()
    rates = [(w, w / s / memory_bytes_per_second) for w, s in zip(widths, seconds, strict=True)]
    # a table that a cache holds can be read faster than memory
    return RowEfficiency(knots=tuple((width, min(1.0, fraction)) for width, fraction in rates))


def rows_held_out(efficiency: RowEfficiency, points: Sequence[FitPoint], memory_bytes_per_second: float) -> HeldOut:
    """Of rows read or added to at random."""
    held_out = [point for point in points if point.held_out]
    fitted = [p.num_bytes / efficiency.fraction(p.num_bytes) / memory_bytes_per_second for p in held_out]
    return HeldOut(fitted, [point.seconds for point in held_out])


def fit_new_memory(points: Sequence[FitPoint]) -> NewMemory | None:
    """A curve that never falls through the medians; None without points."""
    if not points:
        return None
    ordered = sorted(points, key=lambda point: point.num_bytes)
    seconds = pool_falling(np.array([point.seconds for point in ordered])).tolist()
    return NewMemory(knots=tuple(zip([point.num_bytes for point in ordered], seconds, strict=True)))


def worst_ratio(curves: CollectiveCurves, points: Sequence[FitPoint]) -> FitPoint:
    """The point held out that the curves miss most."""
    return max(
        (point for point in points if point.held_out),
        key=lambda point: abs(math.log(curves.seconds(point.num_bytes, point.ranks) / point.seconds)),
    )

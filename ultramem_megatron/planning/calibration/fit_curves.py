"""Curves of a profile from points: seconds of a collective over bytes by size of group, rows over their width."""

import math
from collections.abc import Sequence

from ultramem_megatron.planning.calibration.robust import smooth_rising, theil_sen
from ultramem_megatron.planning.profile import CollectiveCurves, Curve, FitPoint, RowEfficiency
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


def collective_error(curves: CollectiveCurves, points: Sequence[FitPoint]) -> float:
    """Mean error over the points held out."""
    held_out = [point for point in points if point.held_out]
    predicted = [curves.seconds(point.num_bytes, point.ranks) for point in held_out]
    return mean_error_fraction(predicted, [point.seconds for point in held_out])


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


def rows_error(efficiency: RowEfficiency, points: Sequence[FitPoint], memory_bytes_per_second: float) -> float:
    """Mean error over the points held out."""
    held_out = [point for point in points if point.held_out]
    predicted = [p.num_bytes / efficiency.fraction(p.num_bytes) / memory_bytes_per_second for p in held_out]
    return mean_error_fraction(predicted, [point.seconds for point in held_out])


def worst_ratio(curves: CollectiveCurves, points: Sequence[FitPoint]) -> FitPoint:
    """The point held out that the curves miss most."""
    return max(
        (point for point in points if point.held_out),
        key=lambda point: abs(math.log(curves.seconds(point.num_bytes, point.ranks) / point.seconds)),
    )

"""Metrics and the recorder through which layers report numbers where they are born.

A layer calls ``recorder.record(METRIC, value, label="layer0")`` and knows nothing of steps, ranks or sinks. The
training loop drains the recorder after a step, joins the readings of all ranks and publishes them. Torch is not
imported: a tensor is known by its ``detach``.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import SupportsFloat


class Reduction(StrEnum):
    """How the values of several micro-batches, and then of several ranks, become one number."""

    MEAN = "mean"
    """Arithmetic mean over all recordings, so a rank with more micro-batches weighs more."""

    SUM = "sum"
    """Sum over all recordings."""

    MAX = "max"
    """Largest recording; NaN if there is one, because a NaN must not hide behind a number."""

    LAST = "last"
    """The last recording; of several ranks, that of the last rank which has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One number that a run reports."""

    name: str
    """``group/name`` in lower case; unique. TensorBoard shows a group as one section."""

    unit: str
    """Unit of the value, such as ``nats``, ``bytes`` or ``fraction``."""

    reduction: Reduction
    """How recordings join."""

    help: str
    """What the number is, and what its movement means."""

    def __post_init__(self) -> None:
        assert re.fullmatch(r"[a-z0-9_]+/[a-z0-9_]+", self.name), f"metric name {self.name!r} is not group/name"

    def full_name(self, label: str = "") -> str:
        """Name under which sinks see the value: ``memory/output_std/layer0``, or the plain name without label."""
        return f"{self.name}/{label}" if label else self.name


@dataclass(frozen=True, slots=True)
class Reading:
    """Recordings of one metric and label, already joined; small enough to send between ranks."""

    reduction: Reduction
    """Copied from the metric, so that a receiver can join without the catalogue."""

    accumulated: float
    """The sum for MEAN and SUM, the largest for MAX, the last for LAST."""

    count: int
    """Recordings behind it, at least 1."""

    @property
    def value(self) -> float:
        """The one number."""
        return self.accumulated / self.count if self.reduction is Reduction.MEAN else self.accumulated

    def joined(self, later: "Reading") -> "Reading":
        """Both as one reading; ``later`` wins where the reduction is LAST."""
        assert self.reduction is later.reduction, f"cannot join {self.reduction} with {later.reduction}"
        pair = (self.accumulated, later.accumulated)
        return Reading(self.reduction, _accumulate(self.reduction, pair), self.count + later.count)


def _accumulate(reduction: Reduction, values: Sequence[float]) -> float:
    if reduction is Reduction.LAST:
        return values[-1]
    if reduction is Reduction.MAX:
        return math.nan if any(map(math.isnan, values)) else max(values)
    return sum(values)


class Recorder:
    """Collects values between two drains. One for each process, passed to whoever records.

    Disabled at first, so that a model used outside of a training loop piles nothing up; the loop switches
    ``enabled`` from step to step. A value that costs something to compute is computed under
    ``if recorder.enabled:``.
    """

    def __init__(self, *, enabled: bool = False) -> None:
        self.enabled = enabled
        self._values: dict[tuple[Metric, str], list[SupportsFloat]] = {}

    def record(self, metric: Metric, value: SupportsFloat, label: str = "") -> None:
        """Keep ``value`` until the next drain; nothing happens while disabled.

        Args:
            metric: What the value is.
            value: A number, or a tensor without dimensions. A tensor is detached but neither copied nor read, so
                no device is waited for; it must not be changed in place before the drain.
            label: Which of several, such as ``layer0`` or the name of a data source.
        """
        if not self.enabled:
            return
        assert getattr(value, "ndim", 0) == 0, f"{metric.name} takes one number, not a tensor of several"
        detach = getattr(value, "detach", None)
        self._values.setdefault((metric, label), []).append(value if detach is None else detach())

    def drain(self) -> dict[str, Reading]:
        """What was recorded since the last drain, joined by each metric's reduction, under its full name.

        Reads tensors, and so waits for their device.
        """
        values, self._values = self._values, {}
        return {
            metric.full_name(label): Reading(
                metric.reduction, _accumulate(metric.reduction, [float(value) for value in recorded]), len(recorded)
            )
            for (metric, label), recorded in values.items()
        }


def join_ranks(drained: Iterable[Mapping[str, Reading]]) -> dict[str, float]:
    """Readings of several ranks, in the order of ranks, as final numbers under their full names.

    Ranks may have recorded different names: the layers of a pipeline stage live on its ranks alone.
    """
    joined: dict[str, Reading] = {}
    for readings in drained:
        for name, reading in readings.items():
            joined[name] = joined[name].joined(reading) if name in joined else reading
    return {name: reading.value for name, reading in joined.items()}

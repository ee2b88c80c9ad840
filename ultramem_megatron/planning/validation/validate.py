"""Predicted against measured: every predictor judged on the same measurements."""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.validation.predictors import Prediction, Predictor
from ultramem_megatron.planning.validation.ranking import (
    coverage_fraction,
    kendall_tau,
    mean_error_fraction,
    regret_fraction,
)
from ultramem_megatron.planning.validation.results import BenchShape, Measurement


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Record):
    """What a predictor takes on one shape."""

    shape: str
    chosen: PartitionName
    best: PartitionName
    regret_fraction: float


class Score(_Record):
    """One predictor. None where a number makes no sense for it."""

    predictor: str
    mean_regret_fraction: float
    worst_regret_fraction: float
    kendall_tau: float | None
    """Over all measurements."""

    kendall_tau_within: float | None
    """Of the strategies of each shape, mean of the shapes."""

    mean_error_fraction: float | None
    coverage_fraction: float | None
    """Share of the measurements inside their intervals."""

    choices: tuple[Choice, ...]
    costs: tuple[float, ...]
    """Predicted, in the order of the measurements."""


def score_all(measurements: Sequence[Measurement], predictors: Sequence[Predictor]) -> list[Score]:
    """Judge each predictor.

    Raises:
        PlanError: On no shape were several strategies measured, so there is nothing to choose.
    """
    by_shape = group_by_shape(measurements)
    if not any(len(rivals) > 1 for rivals in by_shape.values()):
        raise PlanError(
            f"the results hold {len(measurements)} measurements, and no shape with two strategies to choose from; run "
            "`tools/bench_partition` without --partition"
        )
    return [_score(predictor, measurements, by_shape) for predictor in predictors]


def group_by_shape(measurements: Sequence[Measurement]) -> dict[BenchShape, list[int]]:
    """Numbers of the measurements of each shape."""
    groups: dict[BenchShape, list[int]] = {}
    for number, one in enumerate(measurements):
        groups.setdefault(one.shape, []).append(number)
    return groups


def _score(predictor: Predictor, measurements: Sequence[Measurement], by_shape: dict[BenchShape, list[int]]) -> Score:
    predictions = [predictor.predict(one) for one in measurements]
    costs, seconds = [one.cost for one in predictions], [one.total.median for one in measurements]
    choices, taus = [], []
    for shape, numbers in by_shape.items():
        if len(numbers) < 2:
            continue
        predicted, measured = [costs[n] for n in numbers], [seconds[n] for n in numbers]
        chosen, best = (numbers[values.index(min(values))] for values in (predicted, measured))
        choices.append(
            Choice(
                shape=shape.label,
                chosen=measurements[chosen].partition,
                best=measurements[best].partition,
                regret_fraction=regret_fraction(predicted, measured),
            )
        )
        taus.append(kendall_tau(predicted, measured))
    regrets = [choice.regret_fraction for choice in choices]
    return Score(
        predictor=predictor.name,
        mean_regret_fraction=sum(regrets) / len(regrets),
        worst_regret_fraction=max(regrets),
        kendall_tau=_known(kendall_tau(costs, seconds)) if predictor.is_cost else None,
        kendall_tau_within=_known(sum(taus) / len(taus)) if predictor.is_cost else None,
        mean_error_fraction=mean_error_fraction(costs, seconds) if predictor.is_time else None,
        coverage_fraction=_coverage(predictions, seconds) if predictor.is_time else None,
        choices=tuple(choices),
        costs=tuple(costs),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _coverage(predictions: Sequence[Prediction], seconds: Sequence[float]) -> float:
    return coverage_fraction([one.low for one in predictions], [one.high for one in predictions], seconds)


def as_json(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Plain values."""
    return [score.model_dump(mode="json") for score in scores]

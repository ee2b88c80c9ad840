"""What a study found: read from the files of its runs, written to results.json, drawn from by table and pictures."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.estimates import mean_of
from ablation.runs import FIRST_SEED, Run, Study
from ablation.sizes import Size, sizes_of, warnings
from ultramem_megatron.files import write_text
from ultramem_megatron.metrics.catalogue import (
    CONSUMED_TOKENS,
    LOSS,
    OUTPUT_STD,
    STEP_SECONDS,
    TOP1_SCORE,
    VALIDATION_LOSS,
)
from ultramem_megatron.monitor.records import METRICS_FILE, read_records

FINAL_PART = 10  # the final training loss is the mean over the last tenth of the steps
CURVE_POINTS = 50
CURVE_DIGITS = 6  # of a number of a curve in results.json

Record = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A number over the run: means over equal stretches of records, placed at the end of each stretch."""

    step: list[int]
    tokens: list[float]
    seconds: list[float]
    value: list[float]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One recipe with one seed."""

    seed: int
    trained: bool
    """Whether it came to its last step; without that its numbers enter no mean."""
    problem: str
    """What is missing, in words; empty when nothing is."""
    step: int
    train_loss: float | None
    """Nats per token, mean over the last tenth of the steps."""
    validation_loss: float | None
    """Nats per token, after the last step; the mean over the sources."""
    validation_loss_by_source: dict[str, float]
    seconds: float
    """Sum over the steps; validation and checkpoints do not count."""
    tasks: dict[str, dict[str, Any]]
    """What ``ultramem eval`` found, by task."""
    curves: dict[str, Curve]
    """By metric: losses; score and output size as means over the memory layers."""


@dataclass(frozen=True, kw_only=True)
class RecipeResult:
    """One row of the table."""

    label: str
    size: Size
    runs: list[RunResult]

    def values(self, of: Callable[[RunResult], float | None]) -> dict[int, float]:
        """One number of each trained run that has it, by seed."""
        found = {run.seed: of(run) for run in self.runs if run.trained}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that the table and the pictures show."""

    command: str
    device: str
    versions: str
    dates: str
    seeds: list[int]
    baseline: str
    tasks: list[str]
    warnings: list[str]
    recipes: list[RecipeResult]

    @property
    def problems(self) -> list[str]:
        return [
            f"{recipe.label}, seed {run.seed}: {run.problem}"
            for recipe in self.recipes
            for run in recipe.runs
            if run.problem
        ]

    def save(self, path: Path) -> None:
        """As JSON; a number that is not finite becomes null."""
        text = json.dumps(_jsonable(dataclasses.asdict(self)), indent=1, allow_nan=False)
        # a curve on one line, or the file has a line a number
        write_text(path, re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n")


def collect(study: Study) -> Results:
    """Read all runs of ``study``, in whatever state they are."""
    sizes = sizes_of(study)
    records = [run.record for run in study.runs]
    return Results(
        command=study.command,
        device=_distinct(_describe_machine(record) for record in records if "device" in record),
        versions=_distinct(
            f"torch {record['torch']}, megatron-core {record['megatron-core']}"
            for record in records
            if "torch" in record
        ),
        dates=_distinct(record["date"] for record in records if "date" in record),
        seeds=[FIRST_SEED + number for number in range(study.seeds)],
        baseline=study.baseline,
        tasks=list(study.tasks),
        warnings=warnings(sizes, study.baseline),
        recipes=[
            RecipeResult(label=label, size=size, runs=[read_run(run, study.tasks) for run in study.runs_of(label)])
            for label, size in sizes.items()
        ],
    )


def _describe_machine(record: Mapping[str, Any]) -> str:
    return f"{record['device']}; runs at a time: {record['jobs']}, threads of each: {record['threads']}"


def _distinct(values: Iterable[str]) -> str:
    return " | ".join(sorted(set(values))) or "not recorded"


def read_run(run: Run, tasks: Sequence[str]) -> RunResult:
    """The numbers of one run."""
    file = run.folder / METRICS_FILE
    records = [record for record in read_records(file) if LOSS.name in record] if file.is_file() else []
    final = -(-run.steps // FINAL_PART)
    last = records[-1] if records else {}
    answers = {task: answer for task in tasks if (answer := run.answer(task)) is not None}
    prefix = VALIDATION_LOSS.full_name("") + "/"
    return RunResult(
        seed=run.config.training.seed,
        trained=run.is_trained,
        problem=_problem_of(run, [task for task in tasks if task not in answers]),
        step=run.last_step,
        train_loss=_mean([record[LOSS.name] for record in records[-final:]]),
        validation_loss=last.get(VALIDATION_LOSS.name),
        validation_loss_by_source={
            name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)
        },
        seconds=math.fsum(record[STEP_SECONDS.name] for record in records),
        tasks=answers,
        curves=_curves(records),
    )


def _problem_of(run: Run, unanswered: Sequence[str]) -> str:
    if run.is_trained and not unanswered:
        return ""
    if said := run.record.get("problem"):
        return str(said)
    if not run.is_trained:
        return f"not finished, step {run.last_step} of {run.steps}" if run.last_step else "not started"
    return f"not asked yet: {', '.join(unanswered)}"


def _curves(records: Sequence[Record]) -> dict[str, Curve]:
    """By metric; those that never occur are left out."""
    clock, seconds = 0.0, []
    for record in records:
        clock += record[STEP_SECONDS.name]
        seconds.append(clock)
    curves = {}
    for metric in (LOSS, VALIDATION_LOSS, TOP1_SCORE, OUTPUT_STD):
        points = [
            (record, elapsed, value)
            for record, elapsed in zip(records, seconds, strict=True)
            if (value := value_of(record, metric.name)) is not None
        ]
        if points:
            curves[metric.name] = _curve(points)
    return curves


def value_of(record: Record, name: str) -> float | None:
    """The metric itself, or the mean over its labels (layers) where it stands only with labels."""
    if name in record:
        return record[name]
    return _mean([value for key, value in record.items() if key.startswith(f"{name}/")])


def _curve(points: Sequence[tuple[Record, float, float]]) -> Curve:
    stretches = min(len(points), CURVE_POINTS)
    ends = [len(points) * (index + 1) // stretches for index in range(stretches)]
    parts = [points[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return Curve(
        step=[int(part[-1][0]["step"]) for part in parts],
        tokens=[part[-1][0][CONSUMED_TOKENS.name] for part in parts],
        seconds=[_short(part[-1][1]) for part in parts],
        value=[_short(mean_of([value for _, _, value in part])) for part in parts],
    )


def _short(value: float) -> float:
    return float(f"{value:.{CURVE_DIGITS}g}")


def _mean(values: Sequence[float]) -> float | None:
    return mean_of(values) if values else None


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_jsonable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

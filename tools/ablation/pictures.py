"""loss.png and stability.png, drawn from the results."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ablation.results import Curve, RecipeResult, Results
from ultramem_megatron.metrics.catalogue import LOSS, OUTPUT_STD, TOP1_SCORE, VALIDATION_LOSS
from ultramem_megatron.metrics.metric import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (5.2, 4.2)
SETTLED = 0.2  # of a run; the fall before would press the differences into one line
COLOURS = 10  # of matplotlib's cycle
DASHES = ("-", "--", ":", "-.")

Place = Callable[[RecipeResult, Curve], list[float]]


@dataclass(frozen=True)
class Band:
    """One recipe in one panel, over its trained runs; all lists are of equal length."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


LOSS_AXES: dict[str, Place] = {
    "training tokens": lambda recipe, curve: curve.tokens,
    "forward FLOPs": lambda recipe, curve: [count * recipe.size.flops_per_token for count in curve.tokens],
    "seconds of training": lambda recipe, curve: curve.seconds,
}
COUNTS = ("training tokens", "forward FLOPs")
STEPS: dict[str, Place] = {"step": lambda recipe, curve: [float(step) for step in curve.step]}


def draw_loss(results: Results, path: Path) -> bool:
    """Loss against tokens, FLOPs and seconds; validation in a row of its own where there was some on the way.

    Returns:
        Whether there was anything to draw; without, ``path`` is removed.
    """
    validated = all(len(curve.step) > 1 for curve in _curves(results, VALIDATION_LOSS))
    metrics = [VALIDATION_LOSS, LOSS] if validated and _curves(results, VALIDATION_LOSS) else [LOSS]
    return _draw(results, metrics, LOSS_AXES, path, zoom=True)


def draw_stability(results: Results, path: Path) -> bool:
    """Top-1 score and output size over steps, means over layers (UltraMem paper, Figure 10).

    Returns:
        As ``draw_loss``.
    """
    return _draw(results, [TOP1_SCORE, OUTPUT_STD], STEPS, path, zoom=False)


def _draw(results: Results, metrics: Sequence[Metric], axes: dict[str, Place], path: Path, *, zoom: bool) -> bool:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    if not any(_curves(results, metric) for metric in metrics):
        path.unlink(missing_ok=True)
        return False
    panels = [(metric, name, place) for metric in metrics for name, place in axes.items()]
    columns = len(axes) if len(axes) > 1 else len(metrics)
    rows = len(panels) // columns
    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows)
    figure, places = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel, (metric, name, place) in zip(places.flat, panels, strict=True):
        _draw_panel(panel, results, metric, place, zoom=zoom)
        if name in COUNTS:
            panel.xaxis.set_major_formatter(EngFormatter())
        panel.set(xlabel=name, ylabel=f"{metric.name} ({metric.unit})")
    handles = {label: one for panel in places.flat for one, label in zip(*panel.get_legend_handles_labels())}  # noqa: B905
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), fontsize="small"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, format="png")
    pyplot.close(figure)
    return True


def _draw_panel(panel: "Axes", results: Results, metric: Metric, place: Place, *, zoom: bool) -> None:
    bands = []
    for index, recipe in enumerate(results.recipes):
        band = band_of(recipe, metric, place)
        if band is None:
            continue
        colour, dash = f"C{index % COLOURS}", DASHES[index // COLOURS % len(DASHES)]
        marker = "o" if metric is VALIDATION_LOSS else None
        panel.plot(
            band.x, band.mean, dash, color=colour, linewidth=1.4, marker=marker, markersize=3, label=recipe.label
        )
        panel.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
        if all(map(math.isfinite, band.mean)):
            bands.append(band)
    if zoom and bands:
        lows, highs = [min(band.low) for band in bands], [band.high[int(SETTLED * len(band.high))] for band in bands]
        if (span := max(highs) - min(lows)) > 0:
            panel.set_ylim(min(lows) - 0.05 * span, max(highs) + 0.05 * span)
    panel.grid(alpha=0.3)


def band_of(recipe: RecipeResult, metric: Metric, place: Place) -> Band | None:
    """Mean, least and greatest of the seeds at each step that all of them have; None without trained runs."""
    runs = [run.curves[metric.name] for run in recipe.runs if run.trained and metric.name in run.curves]
    if not runs:
        return None
    steps = sorted(set.intersection(*(set(curve.step) for curve in runs)))
    if not steps:
        return None
    at = [[curve.step.index(step) for step in steps] for curve in runs]
    x = [[place(recipe, curve)[index] for index in found] for curve, found in zip(runs, at, strict=True)]
    y = [[curve.value[index] for index in found] for curve, found in zip(runs, at, strict=True)]
    return Band(
        x=[sum(column) / len(column) for column in zip(*x, strict=True)],
        mean=[sum(column) / len(column) for column in zip(*y, strict=True)],
        low=[min(column) for column in zip(*y, strict=True)],
        high=[max(column) for column in zip(*y, strict=True)],
    )


def _curves(results: Results, metric: Metric) -> list[Curve]:
    return [
        run.curves[metric.name]
        for recipe in results.recipes
        for run in recipe.runs
        if run.trained and metric.name in run.curves
    ]

"""The judgement as a table of at most 120 columns, and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.profile import ClusterProfile
from ultramem_megatron.planning.validation.results import BenchResults
from ultramem_megatron.planning.validation.validate import Score, group_by_shape

WORST_SHOWN = 5


def table(scores: Sequence[Score], results: BenchResults, profiles: Sequence[ClusterProfile]) -> str:
    """What each predictor is worth, and where the first of them chose worst."""
    shapes = group_by_shape(results.measurements)
    ranks = sorted({shape.ranks for shape in shapes})
    head = (
        f"Profile {' and '.join(one.name for one in profiles)} against {len(results.measurements)} measurements of "
        f"{len(shapes)} lookups, forward and backward, over {' and '.join(map(str, ranks))} ranks."
    )
    columns = ("predictor", "mean regret", "worst regret", "Kendall tau", "tau within", "mean error", "in interval")
    rows = [columns, *(_row(score) for score in scores)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [head, ""]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([*lines, "", *_worst(scores[0]), "", *_EXPLANATION])


_EXPLANATION = (
    "Regret: how much longer the chosen strategy takes than the best one of the shape. Tau: Kendall's tau-b of all",
    "measurements; within: of the strategies of one shape, mean of the shapes. Error: mean, absolute, of the measured.",
)


def _row(score: Score) -> tuple[str, ...]:
    return (
        score.predictor,
        f"{score.mean_regret_fraction:.1%}",
        f"{score.worst_regret_fraction:.1%}",
        "-" if score.kendall_tau is None else f"{score.kendall_tau:.3f}",
        "-" if score.kendall_tau_within is None else f"{score.kendall_tau_within:.3f}",
        "-" if score.mean_error_fraction is None else f"{score.mean_error_fraction:.1%}",
        "-" if score.coverage_fraction is None else f"{score.coverage_fraction:.0%}",
    )


def _worst(score: Score) -> list[str]:
    wrong = sorted((c for c in score.choices if c.chosen != c.best), key=lambda choice: -choice.regret_fraction)
    right = len(score.choices) - len(wrong)
    lines = [f"The {score.predictor} took the best strategy in {right} of {len(score.choices)}."]
    for choice in wrong[:WORST_SHOWN]:
        lines.append(f"  {choice.shape}: {choice.chosen}, {choice.regret_fraction:.1%} longer than {choice.best}")
    return lines


def draw(scores: Sequence[Score], results: BenchResults, path: Path) -> None:
    """Predicted against measured seconds of the first predictor, and everyone's regrets.

    Raises:
        PlanError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise PlanError(
            f"--plot {path} needs matplotlib; pip install 'ultramem-megatron[dev]', or leave it out"
        ) from None
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    measured = [one.total.median for one in results.measurements]
    names = sorted({str(one.partition) for one in results.measurements})
    colours = dict(zip(names, colormaps["tab10"].colors, strict=False))  # type: ignore[attr-defined]
    for name in names:
        points = [
            (seconds, cost)
            for one, seconds, cost in zip(results.measurements, measured, scores[0].costs, strict=True)
            if one.partition == name
        ]
        left.scatter(*zip(*points, strict=True), s=12, color=colours[name], label=name)
    ends = [min([*measured, *scores[0].costs]), max([*measured, *scores[0].costs])]
    left.plot(ends, ends, color="grey", linewidth=0.8)
    left.set(
        xscale="log", yscale="log", xlabel="measured seconds", ylabel="predicted seconds", title=scores[0].predictor
    )
    left.legend(fontsize="small")
    for score in scores:
        regrets = sorted(choice.regret_fraction for choice in score.choices)
        shares = [(number + 1) / len(regrets) for number in range(len(regrets))]
        right.step(regrets, shares, where="post", label=score.predictor)
    right.set(
        xlabel="regret of the choice (fraction)", ylabel="share of the shapes", title="top-1 regret", ylim=(0, 1.02)
    )
    right.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)

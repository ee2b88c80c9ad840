"""Draws what ``ultramem validate`` found."""

from collections.abc import Sequence
from pathlib import Path

from ultramem_launch.plotting import new_figure, save_figure
from ultramem_megatron.planning.validation.results import BenchResults
from ultramem_megatron.planning.validation.validate import Score


def draw(scores: Sequence[Score], results: BenchResults, path: Path) -> None:
    """Predicted against measured seconds of the first predictor, and everyone's regrets.

    Raises:
        LaunchError: matplotlib is not installed.
    """
    figure = new_figure("--plot", path, (11, 4.6))
    from matplotlib import colormaps

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
    save_figure(figure, path, 130)

"""Draws what ``ultramem validate`` found."""

from collections.abc import Sequence
from pathlib import Path

from ultramem_megatron.errors import LaunchError
from ultramem_megatron.planning.validation.results import BenchResults
from ultramem_megatron.planning.validation.validate import Score


def draw(scores: Sequence[Score], results: BenchResults, path: Path) -> None:
    """Predicted against measured seconds of the first predictor, and everyone's regrets.

    Raises:
        LaunchError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise LaunchError(
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

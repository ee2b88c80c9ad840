"""Draws Figure 9 of the UltraMem paper, and beside it the same map by predicted time."""

from pathlib import Path
from typing import Any

from ultramem_launch.plotting import new_figure, save_figure

RED_BLUE_LIMIT = 10.0
"""Ratios beyond this all have the same colour."""
DARK = 4
"""Ratios beyond which a cell is dark."""


def draw(numbers: Any, path: Path) -> None:
    """Left: break-even widths over ranks, a curve for each top-m. Right: who is faster, and by how much.

    Args:
        numbers: As ``planning.figure9.numbers`` gives them.
        path: A PNG; the folder is made when missing.

    Raises:
        LaunchError: matplotlib is not installed.
    """
    figure = new_figure("--figure9", path, (12, 5))
    left, right = figure.subplots(1, 2)
    _curves(left, numbers["break_even_value_dim"])
    _map(figure, right, numbers["time_map"])
    save_figure(figure, path, 120)


def _curves(axes: Any, widths: dict[str, dict[str, float | None]]) -> None:
    for top_m, curve in widths.items():
        known = {int(ranks): width for ranks, width in curve.items() if width is not None}
        axes.plot(list(known), list(known.values()), marker="o", markersize=3, label=f"top-m {top_m}")
        if known:
            axes.fill_between(list(known), list(known.values()), 8192, alpha=0.06)
    axes.set(xscale="log", yscale="log", ylim=(2, 8192), xlabel="ranks that share a table (P)", ylabel="row width")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_title("By the paper's bytes: dimension-wise sends less above", fontsize=11)
    axes.legend()


def _map(figure: Any, axes: Any, found: dict[str, Any]) -> None:
    from matplotlib.colors import LogNorm

    points = found["number_wise_over_dimension_wise"]
    ranks, widths = (sorted({point[name] for point in points}) for name in ("ranks", "value_dim"))
    cells = [[float("nan")] * len(ranks) for _ in widths]
    for point in points:
        cells[widths.index(point["value_dim"])][ranks.index(point["ranks"])] = point["seconds_ratio"]
    norm = LogNorm(1 / RED_BLUE_LIMIT, RED_BLUE_LIMIT)
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap="RdBu", norm=norm)
    for row, line in enumerate(cells):
        for column, ratio in enumerate(line):
            if ratio == ratio:  # NaN where the ranks do not divide the width
                color = "black" if DARK**-1 < ratio < DARK else "white"
                axes.text(column, row, f"{ratio:.2g}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(ranks)), ranks)
    axes.set_yticks(range(len(widths)), widths)
    axes.set(xlabel="ranks that share a table (P)", ylabel="row width")
    axes.set_title(f"By time on {found['profile']}, T = {found['tokens']}, top-m {found['top_m']}", fontsize=11)
    figure.colorbar(image, ax=axes, label="seconds, number-wise / dimension-wise")

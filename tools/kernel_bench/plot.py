"""One picture of a run."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot


def draw(bars: dict[str, Any], path: Path) -> None:
    """Horizontal bars.

    Args:
        bars: ``label`` of the axis, ``names`` and ``values``.
        path: Its ending names the format.
    """
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.35 * len(bars["names"])))
    axes.barh(bars["names"][::-1], bars["values"][::-1])
    axes.set_xlabel(bars["label"])
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

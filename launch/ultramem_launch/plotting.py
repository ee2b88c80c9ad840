"""What pictures have in common: matplotlib, which is optional, and a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from ultramem_megatron.errors import LaunchError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(option: str, path: Path, size_inches: tuple[float, float]) -> "Figure":
    """An empty figure.

    Args:
        option: Which asked for it, for the message.
        path: What it was given.
        size_inches: Width and height.

    Raises:
        LaunchError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LaunchError(
            f"{option} {path} needs matplotlib; pip install 'ultramem-megatron[dev]', or leave it out"
        ) from None
    return Figure(figsize=size_inches, layout="constrained")


def save_figure(figure: "Figure", path: Path, dots_per_inch: int) -> None:
    """Write it; the folder is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dots_per_inch)

"""What pictures have in common: matplotlib, which is optional, and a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from ultramem_megatron.errors import LaunchError
from ultramem_megatron.files import check_can_write, written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(option: str, path: Path, size_inches: tuple[float, float]) -> "Figure":
    """An empty figure.

    Args:
        option: Which asked for it, for the message.
        path: What it was given.
        size_inches: Width and height.

    Raises:
        LaunchError: matplotlib is not installed, or cannot draw files of this kind.
        FileError: The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LaunchError(
            f"{option} {path} needs matplotlib; pip install 'ultramem-megatron[dev]', or leave it out"
        ) from None
    figure = Figure(figsize=size_inches, layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise LaunchError(f"{option} {path} should end in one of .{', .'.join(sorted(kinds))}")
    check_can_write(path)
    return figure


def save_figure(figure: "Figure", path: Path, dots_per_inch: int) -> None:
    """Write it; the folder is made when missing."""
    with written_whole(path) as stream:
        figure.savefig(stream, dpi=dots_per_inch, format=path.suffix.removeprefix("."))

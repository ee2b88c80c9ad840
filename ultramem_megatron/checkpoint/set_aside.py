"""A mark on a checkpoint that runs are to pass over: starts from it kept failing, so the fault may be in it."""

from pathlib import Path

from ultramem_megatron.checkpoint.names import shown
from ultramem_megatron.files import write_text

MARK = "SET_ASIDE"
"""File in the checkpoint's folder that holds the reason. Whoever removes it gives the checkpoint back to the run."""


def set_aside(folder: Path, reason: str) -> None:
    """Mark a checkpoint; nothing of it is touched.

    Raises:
        OSError: The folder cannot be written to.
    """
    write_text(folder / MARK, f"{reason}\n")


def is_set_aside(folder: Path) -> bool:
    """Whether it is marked."""
    return (folder / MARK).is_file()


def describe_mark(folder: Path) -> str:
    """One paragraph about a marked checkpoint, with the way back."""
    reason = shown((folder / MARK).read_text(errors="replace").strip(), 400) or "its mark gives no reason"
    return f"checkpoint {folder} is set aside: {reason}; to use it all the same, remove {folder / MARK}"

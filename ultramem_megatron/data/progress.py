"""How a long step tells what it is doing."""

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of it that is done, from 0 to 1."""


def silent(what: str, fraction: float) -> None:
    """A ``Progress`` that says nothing."""

"""Operations that wait for other ranks, driven by hand: no event loop, no threads.

Such an operation is a coroutine. What it has begun it ``await``s, and there it can be left while other work is done;
it goes on when its owner says so. All ranks must say so at the same places of their program.
"""

from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

import torch

Result = TypeVar("Result")


class Underway(Generic[Result]):
    """An operation that has been begun, up to the first thing that it waits for."""

    def __init__(self, operation: Coroutine[Any, None, Result]) -> None:
        self._operation = operation
        self._results: list[Result] = []
        self.advance()

    @property
    def is_done(self) -> bool:
        """Whether it has its result."""
        return bool(self._results)

    @torch.compiler.disable  # torch.compile would trace into the coroutine, and fail: it cannot go on within one
    def advance(self) -> None:
        """Wait for what it waits for, and go on up to the next such thing, or to its end."""
        try:
            self._operation.send(None)
        except StopIteration as end:
            self._results.append(end.value)

    def finish(self) -> Result:
        """Go on to the end, waiting wherever it waits."""
        while not self.is_done:
            self.advance()
        return self._results[0]


def finish(operation: Coroutine[Any, None, Result]) -> Result:
    """Run an operation from its beginning to its end, with nothing in between."""
    return Underway(operation).finish()

"""Seconds of one process by cause. What happens inside a cause counts for that cause alone, not for the outer one."""

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Causes:
    """A stack of what the main thread is doing."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.times: Counter[str] = Counter()
        self._stack: list[str] = []
        self._since = time.monotonic()

    @contextmanager
    def within(self, cause: str) -> Iterator[None]:
        """Seconds that pass inside belong to ``cause``."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._turn()
        self._stack.append(cause)
        self.times[cause] += 1
        try:
            yield
        finally:
            self._turn()
            if self._stack:  # emptied in a fork
                self._stack.pop()

    def take(self) -> dict[str, float]:
        """What was counted since the last call."""
        self._turn()
        taken = {cause: round(seconds, 4) for cause, seconds in self.seconds.items()}
        self.seconds.clear()
        return taken

    def restart(self) -> None:
        """In a forked child, which begins with nothing."""
        self.seconds.clear()
        self._stack.clear()
        self._since = time.monotonic()

    def wrap(self, owner: Any, name: str, cause: str) -> None:
        """Count the calls of ``owner.name`` as ``cause``, from now to the end of the process."""
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.within(cause):
                return inner(*args, **kwargs)

        setattr(owner, name, counted)

    def _turn(self) -> None:
        now = time.monotonic()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

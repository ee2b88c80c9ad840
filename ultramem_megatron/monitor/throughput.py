"""Speed of a run: tokens and model FLOPs per second over the last steps, and the time left."""

import time
from collections import deque
from collections.abc import Callable, Collection

from ultramem_megatron.metrics.catalogue import MODEL_FLOPS_PER_SECOND, STEP_SECONDS, TOKENS_PER_SECOND


def mean(values: Collection[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)


def seconds_left(steps_left: int, step_seconds: float) -> float:
    """Time to the end of the run, validation and checkpoints not counted."""
    return steps_left * step_seconds


class Throughput:
    """Times steps. What happens between ``finish`` and ``start`` (validation, checkpoints) is not counted."""

    def __init__(
        self,
        *,
        tokens_per_step: int,
        flops_per_token: float,
        window: int = 20,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare to time steps.

        Args:
            tokens_per_step: Tokens of a global batch, over all ranks.
            flops_per_token: Model FLOPs of a training token, forward and backward, recomputation not counted.
            window: Steps over which rates are averaged.
            clock: Seconds from any origin, never running backwards.
        """
        self._tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._clock = clock
        self._seconds: deque[float] = deque(maxlen=window)
        self._is_warm = False
        self._started: float | None = None

    def start(self) -> None:
        """A step begins."""
        self._started = self._clock()

    def finish(self) -> dict[str, float]:
        """The step is over on the device as well (the loss has been read). Its metrics, by full name."""
        assert self._started is not None, "finish() without start()"
        seconds = max(self._clock() - self._started, 1e-9)
        self._started = None
        # The first step pays for buffers, caches and compilation, and would spoil the mean of those that follow
        if len(self._seconds) == 1 and not self._is_warm:
            self._seconds.clear()
            self._is_warm = True
        self._seconds.append(seconds)
        tokens_per_second = self._tokens_per_step / mean(self._seconds)
        return {
            STEP_SECONDS.name: seconds,
            TOKENS_PER_SECOND.name: tokens_per_second,
            MODEL_FLOPS_PER_SECOND.name: tokens_per_second * self._flops_per_token,
        }

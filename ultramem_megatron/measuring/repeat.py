"""Things done again and again by all ranks of the world at once, until their time is known well enough."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ultramem_megatron.measuring.clock import Clock, slowest, time_together
from ultramem_megatron.planning.calibration.schedule import MIN_REPEATS, Schedule


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds: of each repeat the slowest rank, then over the repeats."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""

    def of_each(self, count: int) -> "Measured":
        """Of one, where ``count`` were timed together."""
        return Measured(self.median / count, self.low / count, self.high / count)


def measure_in_turns(
    works: Mapping[str, Callable[[], object]], clock: Clock, schedule: Schedule
) -> dict[str, Measured]:
    """Time each of ``works``, which take turns so that noise hits all alike. Collective over the world.

    A rank that has nothing to do in one of them passes something that does nothing.
    """
    world = dist.group.WORLD
    assert world is not None
    rounds: list[list[float]] = []
    repeats = schedule.repeats
    for number in range(schedule.warmups + schedule.repeats):
        if number >= schedule.warmups + repeats:
            break
        rounds.append([time_together([work], clock, world)[0] for work in works.values()])
        if number == schedule.warmups:
            # the ranks must agree on when to stop
            (longest,) = slowest([[sum(rounds[-1])]], clock.device, world).flatten().tolist()
            repeats = max(MIN_REPEATS, min(repeats, int(schedule.seconds_each / max(longest, 1e-9))))
    columns = slowest(rounds[schedule.warmups :], clock.device, world).T
    quartiles = torch.tensor([0.5, 0.25, 0.75], dtype=columns.dtype)
    return {
        name: Measured(*torch.quantile(column, quartiles).tolist()) for name, column in zip(works, columns, strict=True)
    }

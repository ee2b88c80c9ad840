"""Things done again and again by all ranks of the world at once, until their time is known well enough."""

import math
from collections.abc import Callable, Mapping, Sequence
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


MOST_IN_A_ROW = 500


def measure_in_turns(
    works: Mapping[str, Callable[[], object]], clock: Clock, schedule: Schedule
) -> dict[str, Measured]:
    """Time each of ``works``, which take turns so that noise hits all alike; seconds of one. Collective over the world.

    What is shorter than ``schedule.stretch_seconds`` is done several times in a row and timed as one. A rank that has
    nothing to do in one of them passes something that does nothing.
    """
    world = dist.group.WORLD
    assert world is not None

    def time_round(counts: Sequence[int]) -> list[float]:
        series = (_in_a_row(work, count) for work, count in zip(works.values(), counts, strict=True))
        return [time_together([one], clock, world)[0] for one in series]

    single = [1] * len(works)
    for _ in range(schedule.warmups - 1):
        time_round(single)
    # counts and repeats are agreed upon, or some ranks would wait for collectives that others never begin
    longest = slowest([time_round(single)], clock.device, world)[0].tolist()
    counts = [_count_for(schedule.stretch_seconds, seconds) for seconds in longest]
    first = slowest([time_round(counts)], clock.device, world)
    repeats = max(MIN_REPEATS, min(schedule.repeats, int(schedule.seconds_each / max(first.sum().item(), 1e-9))))
    others = slowest([time_round(counts) for _ in range(repeats - 1)], clock.device, world)
    columns = torch.cat([first, others]).T / torch.tensor(counts).unsqueeze(1)
    quartiles = torch.tensor([0.5, 0.25, 0.75], dtype=columns.dtype)
    return {
        name: Measured(*torch.quantile(column, quartiles).tolist()) for name, column in zip(works, columns, strict=True)
    }


def _count_for(stretch_seconds: float, seconds: float) -> int:
    """How often in a row something is done that takes ``seconds``."""
    return max(1, min(MOST_IN_A_ROW, math.ceil(stretch_seconds / max(seconds, 1e-9))))


def _in_a_row(work: Callable[[], object], count: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(count):
            work()

    return run

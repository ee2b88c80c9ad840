"""``Part``: one piece of a predicted time, and the number of the profile that it rests on."""

from dataclasses import dataclass
from enum import StrEnum


class Pass(StrEnum):
    """Of a micro-batch."""

    FORWARD = "forward"
    BACKWARD = "backward"


class Phase(StrEnum):
    """Of a lookup, as in ``parallel/partition``; backward they run in reverse."""

    DISPATCH = "dispatch"
    LOOKUP = "lookup"
    COMBINE = "combine"
    SYNC = "sync"
    """Of no lookup: once a step, to keep the copies of a shard equal."""


@dataclass(frozen=True, slots=True)
class Part:
    """One collective, or one kernel."""

    which: Pass
    phase: Phase
    path: str
    """Of the number in the cluster profile: ``network.all_to_all``, ``gather``."""

    seconds: float
    name: str
    """What travels, or what is done."""

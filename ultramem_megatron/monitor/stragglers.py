"""Which ranks are slower than those with the same work, report after report."""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

REPORTS_IN_A_ROW = 3
"""A rank is named after so many, and taken back after so many: one slow step is noise."""

_LEAST_SECONDS = 1e-9
_NAMED_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where a rank is."""

    host: str
    stage: int
    """Its pipeline stage. Stages differ in their work by right, ranks of one do not."""


@dataclass(frozen=True, slots=True)
class RankWork:
    """A rank's own work in a step."""

    rank: int
    seconds: float
    usual_seconds: float
    """The lower median of the ranks of its stage: of two, the faster one's."""

    @property
    def ratio(self) -> float:
        """How many times as long as usual."""
        return self.seconds / self.usual_seconds


def compare_ranks(seconds: Sequence[float], places: Sequence[RankPlace]) -> list[RankWork]:
    """Each rank beside its stage. ``seconds``: own work of a step, by rank; ``places``: likewise."""
    by_stage: dict[int, list[float]] = {}
    for own, place in zip(seconds, places, strict=True):
        by_stage.setdefault(place.stage, []).append(own)
    usual = {stage: max(statistics.median_low(of_stage), _LEAST_SECONDS) for stage, of_stage in by_stage.items()}
    return [RankWork(rank, own, usual[places[rank].stage]) for rank, own in enumerate(seconds)]


class StragglerWatch:
    """Remembers the last reports, so that a rank is named once when it falls behind and once when it has caught up."""

    def __init__(self, places: Sequence[RankPlace], limit_ratio: float) -> None:
        """``limit_ratio``: a rank that takes more than so many times as long as usual is slow."""
        self._places, self._limit_ratio = places, limit_ratio
        self._slow: deque[set[int]] = deque(maxlen=REPORTS_IN_A_ROW)
        self._named: set[int] = set()

    def look(self, work: Sequence[RankWork]) -> list[str]:
        """What there is to say after another report; most often nothing.

        Args:
            work: What ``compare_ranks`` found, by rank.
        """
        self._slow.append({one.rank for one in work if one.ratio > self._limit_ratio})
        if len(self._slow) < REPORTS_IN_A_ROW:
            return []
        fallen_behind = {rank for rank in self._slow[-1] - self._named if all(rank in slow for slow in self._slow)}
        caught_up = {rank for rank in self._named if not any(rank in slow for slow in self._slow)}
        self._named = (self._named | fallen_behind) - caught_up
        words = []
        if fallen_behind:
            slowest = sorted((work[rank] for rank in fallen_behind), key=lambda one: -one.ratio)
            named = [self._describe(one) for one in slowest[:_NAMED_AT_ONCE]]
            words.append("; ".join(named) + _and_more(slowest) + f", in {REPORTS_IN_A_ROW} reports in a row")
        if caught_up:
            ranks = sorted(caught_up)
            named = [f"rank {rank} on {self._places[rank].host}" for rank in ranks[:_NAMED_AT_ONCE]]
            words.append(f"{', '.join(named)}{_and_more(ranks)}: as fast as the others again")
        return words

    def _describe(self, one: RankWork) -> str:
        return (
            f"rank {one.rank} on {self._places[one.rank].host} works {one.seconds:.3g} s for a step, "
            f"{one.ratio:.1f} times as long as ranks with the same work ({one.usual_seconds:.3g} s)"
        )


def _and_more(found: Sequence[object]) -> str:
    return f" and {len(found) - _NAMED_AT_ONCE} more" if len(found) > _NAMED_AT_ONCE else ""

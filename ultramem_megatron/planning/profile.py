"""``ClusterProfile``: how fast one kind of machine is, as a frozen record. Files of it are read in ``profile_file.py``.

Each number has an entry in ``sources``: where it comes from, and how far to trust it. What ``ultramem calibrate``
measures comes in the same form, with ``fit`` filled in. Seconds and bytes per second throughout, per rank.
"""

import math
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

PROFILE_VERSION: Final = 1

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Collective(StrEnum):
    """What the ranks of a group do together."""

    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    ALL_REDUCE = "all_reduce"


class Level(StrEnum):
    """Which wires a message takes."""

    NODE = "node"
    """Inside a machine."""
    NETWORK = "network"
    """Between machines."""


class Trust(StrEnum):
    """How good a number is."""

    MEASURED = "measured"
    """On this very cluster, by ``ultramem calibrate``."""
    PUBLISHED = "published"
    """A data sheet, or a measurement that someone published."""
    DERIVED = "derived"
    """Calculated from published numbers."""
    ASSUMED = "assumed"
    """A rule of thumb; measure it."""


INTERVAL_SHARE: Final = 0.8
"""Of what is measured, what intervals should hold."""

UNCERTAINTY_FRACTION: Final = {Trust.MEASURED: 0.15, Trust.PUBLISHED: 0.2, Trust.DERIVED: 0.3, Trust.ASSUMED: 0.5}
"""Half width of the interval around a time that rests on a number of this kind, where no fit error is known."""


class Source(Record):
    """Where a number comes from."""

    trust: Trust
    source: str = Field(min_length=1)


class Curve(Record):
    """Seconds over bytes: ``latency_seconds`` for none, straight lines through ``knots``, then ``bytes_per_second``.

    Without knots this is the alpha-beta model, alpha + S / B. What S counts is said in ``CollectiveCurves``.
    """

    ranks: int = Field(ge=2)
    """Size of the group that it holds for."""

    latency_seconds: Positive
    bytes_per_second: Positive
    """Slope after the last knot."""

    knots: tuple[tuple[Positive, Positive], ...] = ()
    """(bytes, seconds), both ascending."""

    def seconds(self, num_bytes: float) -> float:
        """Time of a message of ``num_bytes``."""
        before_bytes, before_seconds = 0.0, self.latency_seconds
        for knot_bytes, knot_seconds in self.knots:
            if num_bytes <= knot_bytes:
                share = (num_bytes - before_bytes) / (knot_bytes - before_bytes)
                return before_seconds + share * (knot_seconds - before_seconds)
            before_bytes, before_seconds = knot_bytes, knot_seconds
        return before_seconds + (num_bytes - before_bytes) / self.bytes_per_second


class CollectiveCurves(Record):
    """One collective on one level, with all groups of the machine at work at once, as in training.

    What S of a curve counts, for one rank:

    - on level ``node``: the bytes that it sends to the other ranks of its group (nccl-tests: S of bus bandwidth);
    - on level ``network``: the bytes that its network share carries. All-to-all: what it sends to other nodes. The
      others go round rings that leave each node through as many shares as the group has ranks there: bytes sent,
      divided by the ranks of the group on one node.
    """

    curves: tuple[Curve, ...] = Field(min_length=1)
    """By size of the group, ascending. Between two sizes, seconds are linear in the logarithm of the size."""

    peer_seconds: NotNegative = 0
    """Added for each rank more than the largest ``ranks`` above: one more message, or one more step of a ring."""

    def seconds(self, num_bytes: float, ranks: int) -> float:
        """Time for a group of ``ranks``."""
        first, last = self.curves[0], self.curves[-1]
        if ranks >= last.ranks:
            return last.seconds(num_bytes) + self.peer_seconds * (ranks - last.ranks)
        for below, above in zip(self.curves, self.curves[1:], strict=False):
            if below.ranks <= ranks <= above.ranks:
                share = math.log(ranks / below.ranks) / math.log(above.ranks / below.ranks)
                return (1 - share) * below.seconds(num_bytes) + share * above.seconds(num_bytes)
        return first.seconds(num_bytes)


class LevelCurves(Record):
    """The collectives on one level."""

    all_gather: CollectiveCurves
    reduce_scatter: CollectiveCurves
    all_to_all: CollectiveCurves
    all_reduce: CollectiveCurves

    def of(self, collective: Collective) -> CollectiveCurves:
        """The curves of one collective."""
        curves = getattr(self, collective.value)
        assert isinstance(curves, CollectiveCurves)
        return curves


class RowEfficiency(Record):
    """Useful bytes per second over the memory's, by width of a row that is read or written at random."""

    knots: tuple[tuple[Positive, Annotated[float, Field(gt=0, le=1)]], ...] = Field(min_length=1)
    """(bytes of a row, fraction), bytes ascending."""

    def fraction(self, row_bytes: float) -> float:
        """Linear in the logarithm of the width; outside the knots that of the nearest, below in proportion to the
        width: whole sectors are read."""
        first_bytes, first = self.knots[0]
        if row_bytes <= first_bytes:
            return first * row_bytes / first_bytes
        for (low_bytes, low), (high_bytes, high) in zip(self.knots, self.knots[1:], strict=False):
            if row_bytes <= high_bytes:
                return low + (high - low) * math.log(row_bytes / low_bytes) / math.log(high_bytes / low_bytes)
        return self.knots[-1][1]


class NewMemory(Record):
    """What it takes longer to write a result into memory that the system has to give first, page by page."""

    knots: tuple[tuple[Positive, NotNegative], ...] = Field(min_length=2)
    """(bytes of the result, seconds), both ascending."""

    def seconds(self, num_bytes: float) -> float:
        """Straight lines; nothing below the first knot, beyond the last in proportion to the size."""
        (before_bytes, before_seconds), *others = self.knots
        if num_bytes <= before_bytes:
            return 0.0
        for knot_bytes, knot_seconds in others:
            if num_bytes <= knot_bytes:
                share = (num_bytes - before_bytes) / (knot_bytes - before_bytes)
                return before_seconds + share * (knot_seconds - before_seconds)
            before_bytes, before_seconds = knot_bytes, knot_seconds
        return before_seconds * num_bytes / before_bytes


class GemmRates(Record):
    """Matrix products as a training run reaches them, not as the data sheet has them."""

    bf16_flops_per_second: Positive
    fp32_flops_per_second: Positive


class FitPoint(Record):
    """One measurement that a fit rests on, or is checked against."""

    path: str
    """Of the number that it serves: ``node.all_gather``, ``gather``, ``gemm``."""

    ranks: int = Field(ge=1)
    num_bytes: float = Field(ge=0, validation_alias="bytes", serialization_alias="bytes")
    """What the curve of ``path`` counts; for ``gather`` and ``scatter`` the width of a row."""

    seconds: Positive
    held_out: bool = False
    """Not used for the fit, but to tell its error."""


class Fit(Record):
    """What a calibrated profile says of its making."""

    date: str = Field(min_length=1)
    """ISO 8601."""

    fingerprint: dict[str, str | int]
    """Hardware and versions: what must be the same for the fit to hold."""

    error_fractions: dict[str, NotNegative]
    """Path -> mean absolute error of the fit over the held-out points, as a fraction of the time."""

    interval_fractions: dict[str, NotNegative] = {}
    """Path -> the error that ``INTERVAL_SHARE`` of the held-out points stay below."""

    points: tuple[FitPoint, ...] = ()


class ClusterProfile(Record):
    """One kind of machine."""

    schema_name: Literal["ultramem-cluster"] = Field(default="ultramem-cluster", alias="schema")
    version: Literal[1] = PROFILE_VERSION
    name: str = Field(min_length=1)
    device: Literal["gpu", "cpu"]
    """On ``cpu``, a rank is a process, and a machine has as many as are started there."""

    ranks_per_node: int = Field(ge=1)
    nics_per_node: int = Field(ge=1)
    """Network cards that the ranks of a node share. For the reader: ``network`` has what they give to a rank."""

    memory_bytes: int = Field(gt=0)
    """Of one rank."""

    reserve_bytes: int = Field(ge=0)
    """Of these, what no tensor of the run can use: runtime, communication buffers, fragmentation."""

    memory_bytes_per_second: Positive
    """Reading or writing one after the other."""

    gather: RowEfficiency
    """Rows read at random."""

    scatter: RowEfficiency
    """Rows added to at random."""

    sort_items_per_second: Positive | None = None
    """Row numbers sorted with their places. Absent: as a radix sort is bound by the memory."""

    pool_forward: RowEfficiency | None = None
    """Rows read at random, weighed and summed by token. Absent: as ``gather``."""

    pool_backward: RowEfficiency | None = None
    """The rows read again for the gradients of their scores, and their own gradients added to fp32 rows; counted are
    the bytes of the rows, once. Absent: as ``gather`` and ``scatter``."""

    new_memory: NewMemory | None = None
    """Absent: nothing. An allocator that keeps what is freed, as that of GPUs does, asks the system once."""

    gemm: GemmRates
    launch_seconds: NotNegative
    """From one kernel (on CPUs: one operation, with its share of autograd) to the next when they do nothing."""

    overlap_fraction: Fraction
    """Share of the dense work beside which a lookup can hide: below 1, because both want the same processors."""

    node: LevelCurves
    network: LevelCurves
    sources: dict[str, Source]
    """Path of a number, or of the section that it is in -> where it comes from."""

    fit: Fit | None = None
    """Absent from what was not measured."""

    def level(self, level: Level) -> LevelCurves:
        """The collectives of one level."""
        return self.node if level is Level.NODE else self.network

    def source(self, path: str) -> Source:
        """Of the number at ``path``, or of the nearest section that it is in."""
        while path not in self.sources:
            assert path, "every number has a source, or the profile would not have been read"
            path = path.rpartition(".")[0]
        return self.sources[path]

    def uncertainty_fraction(self, path: str) -> float:
        """Half width of the interval around a time that rests on ``path``: of the errors of its fit, if it has one."""
        if self.fit is not None:
            known = {**self.fit.error_fractions, **self.fit.interval_fractions}  # older profiles have the mean alone
            if path in known:
                return known[path]
        return UNCERTAINTY_FRACTION[self.source(path).trust]


def numbers_of(profile: ClusterProfile) -> list[str]:
    """Paths of what needs a source."""
    plain = ("ranks_per_node", "nics_per_node", "memory_bytes", "reserve_bytes", "memory_bytes_per_second")
    others = ["gather", "scatter", "gemm", "launch_seconds", "overlap_fraction"]
    others += [
        name
        for name in ("sort_items_per_second", "pool_forward", "pool_backward", "new_memory")
        if getattr(profile, name) is not None
    ]
    return [*plain, *others, *(f"{level}.{collective}" for level in Level for collective in Collective)]

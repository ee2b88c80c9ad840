"""What ``tools/bench_partition`` writes and ``ultramem validate`` reads: seconds and bytes of timed lookups."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.errors import PlanError
from ultramem_megatron.files import write_text
from ultramem_megatron.planning.comm_cost import LookupShape
from ultramem_megatron.planning.fingerprint import Fingerprint

RESULTS_VERSION: Final = 1


class Skew(StrEnum):
    """How the picks fall on the rows."""

    UNIFORM = "uniform"
    """All rows are equally likely."""

    ZIPF = "zipf"
    """The i-th most popular row is picked with a chance of 1 / i (Zipf's law, exponent 1); popular rows lie anywhere in
    the table."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class BenchShape(_Record):
    """One lookup by every rank of a ``mem`` group. What all strategies are compared on."""

    ranks: PositiveInt
    """Ranks of the group [P]."""

    tokens: PositiveInt
    """Of each rank [T]."""

    top_m: PositiveInt
    """Rows that a token reads, all heads together [K]."""

    value_dim: PositiveInt
    """Width of a row [V]."""

    num_rows: PositiveInt
    """Rows of the table [N]."""

    element_bytes: Literal[2, 4]
    """bf16 or fp32."""

    skew: Skew
    expansion: PositiveInt = 1
    cores: PositiveInt = 1

    @property
    def lookup(self) -> LookupShape:
        """As the planner's formulas take it."""
        return LookupShape(
            tokens=self.tokens,
            picks=self.top_m,
            num_rows=self.num_rows,
            value_dim=self.value_dim,
            element_bytes=self.element_bytes,
            expansion=self.expansion,
            cores=self.cores,
            zipf_exponent=1.0 if self.skew is Skew.ZIPF else 0.0,
        )

    @property
    def label(self) -> str:
        """``P=4 T=512 m=16 V=128 zipf``."""
        text = f"P={self.ranks} T={self.tokens} m={self.top_m} V={self.value_dim} {self.skew}"
        return text + (f" E={self.expansion} h={self.cores}" if self.expansion * self.cores > 1 else "")


class Seconds(_Record):
    """Of one pass or phase: the slowest rank of each repeat, then over the repeats."""

    median: float
    low: float
    """Lower quartile."""

    high: float
    """Upper quartile."""


class Measurement(_Record):
    """One strategy on one shape."""

    partition: PartitionName
    node_size: PositiveInt | None = None
    """Of a grid, the ranks that count as one node [L]."""

    shape: BenchShape
    repeats: PositiveInt
    forward: Seconds
    backward: Seconds
    total: Seconds
    halves: tuple[float, float] | None = None
    """Median of ``total`` over the odd repeats, and over the even ones: by as much do two measurements differ, made at
    the same time. Absent from older files, and of one repeat."""

    phases: dict[str, Seconds]
    """``dispatch``, ``lookup`` and ``combine`` of the forward pass. Of each the slowest rank counts, so they may
    sum to more than ``forward``."""

    forward_bytes: float
    """Payload that a rank sent to others, mean of the ranks, counted at the collectives."""

    backward_bytes: float


class BenchResults(_Record):
    """A file of measurements. Complete or not: a later run goes on where it ends."""

    schema_name: Literal["ultramem-bench-partition"] = Field(default="ultramem-bench-partition", alias="schema")
    version: Literal[1] = RESULTS_VERSION
    fingerprints: tuple[Fingerprint, ...] = ()
    """One for each number of processes."""

    measurements: tuple[Measurement, ...] = ()

    def has(self, partition: PartitionName, shape: BenchShape, node_size: int | None = None) -> bool:
        """Whether it was measured already; ``node_size`` matters to a grid alone."""
        wanted = (partition, shape, node_size if partition is PartitionName.GRID else None)
        return any((one.partition, one.shape, one.node_size) == wanted for one in self.measurements)

    def with_measurements(self, more: Sequence[Measurement]) -> "BenchResults":
        """The same and ``more``."""
        return self.model_copy(update={"measurements": (*self.measurements, *more)})

    def continued_by(self, here: Fingerprint, origin: Path) -> "BenchResults":
        """To go on with the processes of ``here``.

        Raises:
            PlanError: As many processes measured for the file before, elsewhere or with other versions.
        """
        before = [one for one in self.fingerprints if one.processes == here.processes]
        differences = before[0].differences(here) if before else []
        if differences:
            raise PlanError(
                f"results {origin} are of other circumstances: {'; '.join(differences)}; times of both cannot be "
                "compared, so write to another file"
            )
        return self if before else self.model_copy(update={"fingerprints": (*self.fingerprints, here)})

    def to_json(self) -> str:
        """The document."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1)

    def save(self, path: Path) -> None:
        """Write the document whole or not at all."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: Path) -> "BenchResults":
        """Read a file.

        Raises:
            PlanError: It cannot be read, or is no such document.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"results {path} cannot be read ({error}); `tools/bench_partition` makes them") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "document"
            raise PlanError(
                f"results {path}: {where}: {first['msg']}; make them with `tools/bench_partition --out {path}`"
            ) from None

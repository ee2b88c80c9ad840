"""``Plan``: the decision for one run, as a frozen document that is saved beside it and checked at resume."""

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ultramem_megatron.config.memory import GroupPlacement, PartitionName
from ultramem_megatron.errors import PlanError
from ultramem_megatron.files import read_bounded, read_json, write_text

PLAN_VERSION: Final = 4
MOST_BYTES = 16 * 2**20
"""Of a saved plan; one of a large cluster has some hundred KiB."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Rejection(StrEnum):
    """Why a candidate is out."""

    PIN = "pin"
    SHAPE = "shape"
    CAPACITY = "capacity"


class CostModel(StrEnum):
    """What candidates are ranked by."""

    TIME = "time"
    """Seconds of an optimizer step on the cluster."""
    BYTES = "bytes"
    """Bytes that a rank sends in it, wherever to."""


class Candidate(_Record):
    """One way of splitting every table. Bytes are what one rank sends to others, on the busiest stage; seconds are of
    one rank, before the dense blocks hide any, unless they are of a step."""

    partition: PartitionName = Field(validation_alias="strategy", serialization_alias="strategy")
    parallel_size: int = Field(validation_alias="P", serialization_alias="P")
    """Ranks that share one copy of each table [P]."""

    placement: GroupPlacement = GroupPlacement.PACKED
    """Which ranks these are."""

    nodes: int = 1
    """Nodes that they lie in."""

    node_size: int | None = None
    """Of a grid, the ranks that count as one node and split the columns [L]; none for other partitions."""

    forward_bytes: float
    """Of one table, pre-values included, in one micro-batch; 0 when the shape rules the candidate out."""

    backward_bytes: float
    """Of one table in one micro-batch."""

    sync_bytes: float
    """Gradients and weights of one table, once an optimizer step, over the copies of a shard."""

    bytes_per_step: float
    """Of all tables of the stage in one optimizer step."""

    forward_seconds: float = 0
    """Of one table, pre-values included, in one micro-batch: collectives and local work."""

    backward_seconds: float = 0
    """Of one table in one micro-batch."""

    sync_seconds: float = 0
    """Of one table, once an optimizer step: the copies of a shard are made equal."""

    phase_seconds: dict[str, float] = Field(default_factory=dict)
    """``forward.dispatch`` and so on -> seconds of one table in one micro-batch."""

    exposed_seconds: float = 0
    """Part of a step for which the dense blocks wait for the tables of the stage."""

    busy_seconds: float = 0
    """What the tables of the stage take in a step, hidden or not."""

    uncertainty_seconds: float = 0
    """Half width of the interval around ``busy_seconds``."""

    step_seconds: float = 0
    """Of an optimizer step, as far as it is modelled; 0 when the shape rules the candidate out."""

    memory_bytes: float = Field(validation_alias="hbm_bytes", serialization_alias="hbm_bytes")
    """Memory of one rank: ``memory`` summed."""

    memory: dict[str, float]
    """Bytes by part."""

    feasible: bool
    rejected_by: Rejection | None = None
    reason: str = ""
    """Why it is not feasible, in words; empty when it is."""

    @property
    def label(self) -> str:
        """``number_wise over 4 ranks``, ``grid over 16 ranks in nodes of 8``, ``... over 4 ranks, spread``."""
        if self.parallel_size == 1:
            return str(self.partition)
        nodes = f" in nodes of {self.node_size}" if self.node_size else ""
        spread = ", spread" if self.placement is GroupPlacement.SPREAD else ""
        return f"{self.partition} over {self.parallel_size} ranks{nodes}{spread}"


class TablePlacement(_Record):
    """One table's part of the plan."""

    table: int
    """Counted from 0 in the order of the spans."""

    span: str
    partition: PartitionName
    parallel_size: int
    node_size: int | None
    """As a candidate's."""

    num_rows: int
    value_dim: int


class TableAlone(_Record):
    """What a table would take if it need not share its strategy with the others. Tells whether a mix would pay."""

    table: int
    """As in ``TablePlacement``."""

    span: str
    stage: int
    """Pipeline rank that does its lookups."""

    choice: str
    """Label of the candidate."""

    waiting_seconds: float
    """For which the stage waits for it in an optimizer step: lookups that nothing hides, and the copies."""

    common_waiting_seconds: float
    """The same under the choice that all tables share; never less."""


class PredictedBytes(_Record):
    """What one rank of the busiest stage sends for all of its tables."""

    forward_per_micro_batch: float = 0
    backward_per_micro_batch: float = 0
    table_sync_per_step: float = 0
    per_step: float = 0
    """Of these three."""

    pending_per_micro_batch: float = 0
    """What the rank that sends most of it sends to its neighbours in the pipeline, because spans cross boundaries
    between stages: results forward, gradients backward. The same for every candidate."""


class PredictedSeconds(_Record):
    """What one rank of the busiest stage needs for all of its tables, and the step around them."""

    forward_per_micro_batch: float = 0
    backward_per_micro_batch: float = 0
    table_sync_per_step: float = 0
    exposed_per_step: float = 0
    """For which the dense blocks wait."""

    dense_per_step: float = 0
    """The slowest stage without its tables."""

    per_step: float = 0
    """The dense blocks and what is exposed. Not modelled: see the report."""

    window_forward: float = 0
    """Dense work of the shortest span, beside which its lookup may run, in one micro-batch."""

    window_backward: float = 0

    uncertainty_per_step: float = 0
    """Half width of the interval around forward, backward and synchronisation of a step."""


class PredictedMessage(_Record):
    """One collective of one table in one micro-batch."""

    num_bytes: float
    """That one rank sends to others."""

    seconds: float


class Flip(_Record):
    """A change of the run or of the cluster under which another candidate is better."""

    what: str
    now: float
    at: float
    """From here on, as far as was looked."""

    choice: str
    """Label of the better one."""


class PaperVerdict(_Record):
    """Forward bytes per token and rank by the formulas of the UltraMem paper, section 4."""

    ranks: int
    number_wise_bytes: float
    dimension_wise_bytes: float
    break_even_value_dim: float | None
    """Row width above which dimension-wise is cheaper; none when number-wise always is."""

    partition: PartitionName
    """The cheaper one."""


class Plan(_Record):
    """Where every table lives, why, and what it is expected to cost. Made by ``choose_plan``."""

    schema_name: Literal["ultramem-plan"] = Field(default="ultramem-plan", alias="schema")
    version: Literal[4] = PLAN_VERSION
    cluster: str
    world_size: int
    config_summary: dict[str, int | str | bool]
    """The settings that the plan depends on, dotted path -> value."""

    config_fingerprint: str
    """SHA-256 of ``config_summary``."""

    profile: str
    """Name of the cluster profile that the seconds are from."""

    cost_model: CostModel = CostModel.TIME
    """What the candidates are ranked by."""

    zipf_exponent: float = 0
    """Skew of the picks that was assumed; 0: all rows are equally likely."""

    memory_parallel_size: int
    """Ranks of a ``mem`` group; 1 for a dense model."""

    memory_placement: GroupPlacement = GroupPlacement.PACKED
    """Which ranks make up a ``mem`` group."""

    chosen: Candidate | None = None
    """The candidate that the placements follow; none for a dense model."""

    placements: tuple[TablePlacement, ...]
    tables_alone: tuple[TableAlone, ...] = ()
    """Of each table the best choice by itself, in the order of ``placements``."""

    predicted: PredictedBytes
    predicted_seconds: PredictedSeconds = PredictedSeconds()
    predicted_messages: dict[str, PredictedMessage] = {}
    """``forward.rows`` and so on -> what is expected of it."""

    usable_memory_bytes: int
    """What the tensors of a rank may take."""

    memory: dict[str, float]
    """Bytes of one rank under the plan, by part."""

    candidates: tuple[Candidate, ...]
    """All, best first, rejected ones last."""

    verdict_by_bytes: PartitionName | None
    """Partition of the feasible candidate that sends least; none for a dense model."""

    verdict_by_time: PartitionName | None = None
    """Partition of the feasible candidate with the shortest step; none for a dense model."""

    tied_with: tuple[str, ...] = ()
    """Candidates between which and the chosen one the model sees no difference."""

    flips: tuple[Flip, ...] = ()
    """What would make another candidate better; empty when nothing near would."""

    paper_verdict: PaperVerdict | None = None
    """Absent when there is nothing to share: a dense model, or one rank a stage."""

    @property
    def partition(self) -> PartitionName | None:
        """How the tables are split; none for a dense model."""
        return self.placements[0].partition if self.placements else None

    @property
    def node_size(self) -> int | None:
        """Ranks of a ``mem`` group that count as one node; none where the tables are not split as a grid."""
        return self.placements[0].node_size if self.placements else None

    @property
    def hash(self) -> str:
        """SHA-256 of the content, in hexadecimal; independent of key order and white space."""
        return sha256_of(self._content())

    def _content(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)

    def to_json(self) -> str:
        """The document, indented, with its hash."""
        return json.dumps({**self._content(), "hash": self.hash}, indent=2)

    @classmethod
    def from_json(cls, text: str, origin: str = "plan") -> "Plan":
        """Read what ``to_json`` wrote.

        Args:
            text: The document.
            origin: Named in errors, the file for instance.

        Raises:
            PlanError: No JSON, no plan of this version, or changed since it was written.
        """
        try:
            content = read_json(text)
        except ValueError as error:
            raise PlanError(f"{origin} is not JSON ({error}); make it again with `ultramem plan --save`") from None
        if not isinstance(content, dict) or content.get("schema") != "ultramem-plan":
            raise PlanError(f'{origin} is no plan: "schema" should be "ultramem-plan"; name a file of `plan --save`')
        stated_hash = content.pop("hash", None)
        try:
            plan = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise PlanError(f"{origin}: {where}: {first['msg']}; make it again with `ultramem plan --save`") from None
        if stated_hash != plan.hash:
            raise PlanError(
                f"{origin} was changed after it was written: its hash is {plan.hash[:12]}, it states "
                f"{str(stated_hash)[:12]}; make it again with `ultramem plan --save`"
            )
        return plan

    def save(self, path: Path) -> None:
        """Write the document; the folder is made when missing."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a saved plan.

        Raises:
            PlanError: As ``from_json``, or the file cannot be read.
        """
        try:
            text = read_bounded(path, MOST_BYTES)
        except (OSError, ValueError) as error:
            raise PlanError(f"plan {path} cannot be read ({error}); make one with `ultramem plan --save`") from None
        return cls.from_json(text, str(path))


def sha256_of(content: Any) -> str:
    """SHA-256 of plain values as canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()

"""What a calibration has measured so far, in a file beside the profile to come: a stopped one goes on from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ultramem_megatron.errors import PlanError
from ultramem_megatron.files import write_text
from ultramem_megatron.planning.fingerprint import Fingerprint
from ultramem_megatron.planning.profile import FitPoint


class Partial(BaseModel):
    """Points by the step that measured them."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_name: Literal["ultramem-calibration"] = Field(default="ultramem-calibration", alias="schema")
    fingerprint: Fingerprint
    quick: bool
    steps: dict[str, tuple[FitPoint, ...]] = {}

    @property
    def points(self) -> tuple[FitPoint, ...]:
        """Of all steps."""
        return tuple(point for points in self.steps.values() for point in points)

    def with_step(self, name: str, points: Sequence[FitPoint]) -> "Partial":
        """The same and one step more."""
        return self.model_copy(update={"steps": {**self.steps, name: tuple(points)}})

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_text(path, self.model_dump_json(by_alias=True) + "\n")


def partial_path(out: Path) -> Path:
    """Beside the profile."""
    return out.with_name(f"{out.name}.partial")


def begin_or_continue(path: Path, here: Fingerprint, quick: bool) -> Partial:
    """What ``path`` holds, or nothing yet.

    Raises:
        PlanError: The file is damaged, or was begun in other circumstances.
    """
    if not path.exists():
        return Partial(fingerprint=here, quick=quick)
    try:
        before = Partial.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        raise PlanError(f"{path} should hold a calibration that was begun ({error}); delete it to begin anew") from None
    differences = before.fingerprint.differences(here)
    if before.quick is not quick:
        differences.append(f"{'quick' if before.quick else 'not quick'} there")
    if differences:
        raise PlanError(f"{path} was begun in other circumstances: {'; '.join(differences)}; delete it to begin anew")
    return before

"""Why a run ended: ``status.json`` in its folder, written by whoever knows first, and believed over every exit status.

Launchers turn exit statuses into others (torchrun: 1; srun: that of whichever rank it ended). So a rank says itself why
it ends, before it does; the first to say it is right, for the others mostly end because it is gone. What is killed says
nothing: then the script of the job, which outlives its ranks, judges and writes the file.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ultramem_launch import exit_codes
from ultramem_megatron.errors import (
    DivergedError,
    MeetingError,
    RankLostError,
    RunFailure,
    UltraMemError,
    names_broken_connection,
)
from ultramem_megatron.files import write_json

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"
ATTEMPT = "ULTRAMEM_ATTEMPT"
"""Which start of a job this is, ``<job id>.<restart>``; set by the job's script, which then owns the status file."""


class Outcome(StrEnum):
    """How a run can end."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    FAILED = "failed"
    BAD_INPUT = "bad_input"
    BAD_NODE = "bad_node"
    NODE_LOST = "node_lost"
    NOT_MET = "not_met"
    HUNG = "hung"
    DIVERGED = "diverged"
    OUT_OF_DISK = "out_of_disk"


@dataclass(frozen=True, slots=True)
class Rule:
    """What an outcome means to whoever started the run."""

    exit_status: int
    restarts: bool
    """Whether to start again can help without anybody doing something."""
    meaning: str


RULES = {
    Outcome.FINISHED: Rule(exit_codes.FINISHED, False, "all steps are done"),
    Outcome.PREEMPTED: Rule(exit_codes.STOPPED, True, "asked to stop; saved"),
    Outcome.FAILED: Rule(exit_codes.FAILED, True, "an exception, or a rank was killed"),
    Outcome.BAD_INPUT: Rule(exit_codes.BAD_INPUT, False, "something to mend, named in the reason"),
    Outcome.BAD_NODE: Rule(exit_codes.BAD_NODE, True, "a node did not pass the checks before training"),
    Outcome.NODE_LOST: Rule(exit_codes.NODE_LOST, True, "a node stopped answering"),
    Outcome.NOT_MET: Rule(exit_codes.NOT_MET, True, "the ranks did not reach each other"),
    Outcome.HUNG: Rule(exit_codes.HUNG, True, "a rank made no progress"),
    Outcome.DIVERGED: Rule(exit_codes.DIVERGED, False, "the loss is lost, and going back did not help"),
    Outcome.OUT_OF_DISK: Rule(exit_codes.OUT_OF_DISK, False, "no room for a checkpoint"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """What ``status.json`` holds."""

    outcome: Outcome
    reason: str = ""
    """One sentence; never empty for what somebody must look at."""
    rank: int | None = None
    """Who said so; None for the job's script."""
    attempt: str = ""
    """Value of ``ULTRAMEM_ATTEMPT``; empty outside of a job."""
    time: float = field(default_factory=lambda: round(time.time(), 3))
    """Seconds since 1970."""

    @property
    def exit_status(self) -> int:
        """By ``RULES``."""
        return RULES[self.outcome].exit_status

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "exit_status": self.exit_status}


def clear_ending(run_dir: Path) -> None:
    """Forget how the run ended before; for the one process that starts it again."""
    (run_dir / STATUS_FILE).unlink(missing_ok=True)


def record_ending(run_dir: Path, ending: Ending) -> bool:
    """Write the status file if nobody has yet; without a run folder nothing is written.

    Returns:
        Whether it was written; if not, another process knew before.
    """
    if not run_dir.is_dir():
        return False
    part = run_dir / f".{STATUS_FILE}.{os.uname().nodename}.{os.getpid()}"
    try:
        write_json(part, ending.to_dict())
        os.link(part, run_dir / STATUS_FILE)  # as a rename, but fails where a file is: the first wins
    except FileExistsError:
        return False
    except OSError as error:  # a full disk, perhaps; what ended the run must still reach whoever started it
        logger.warning("%s: %s could not be written: %s", run_dir / STATUS_FILE, ending.outcome, error)
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def replace_ending(run_dir: Path, ending: Ending) -> None:
    """Write the status file over what a rank took for the cause; for the job's script."""
    write_json(run_dir / STATUS_FILE, ending.to_dict())


def read_ending(run_dir: Path) -> Ending | None:
    """How the run ended; None while it runs, or when what is there is no status file."""
    try:
        content = json.loads((run_dir / STATUS_FILE).read_text())
        content.pop("exit_status")
        return Ending(**{**content, "outcome": Outcome(content["outcome"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def attempt_of_this_process() -> str:
    """``ULTRAMEM_ATTEMPT``, or ""."""
    return os.environ.get(ATTEMPT, "")


@contextmanager
def failures_recorded(run_dir: Path, rank: int) -> Iterator[None]:
    """What is raised inside is written down as the run's ending, and raised on."""
    try:
        yield
    except UltraMemError as error:
        _record(run_dir, rank, Outcome.BAD_INPUT, str(error))
        raise
    except RunFailure as error:
        _record(run_dir, rank, outcome_of(error), str(error))
        raise
    except RankLostError as error:
        _record(run_dir, rank, Outcome.FAILED, str(error), corrects_broken_connection=True)
        raise
    except Exception as error:
        _record(run_dir, rank, Outcome.FAILED, f"{type(error).__name__}: {error}")
        raise


def outcome_of(error: RunFailure) -> Outcome:
    """What the status file calls it."""
    if isinstance(error, MeetingError):
        return Outcome.NOT_MET
    return Outcome.DIVERGED if isinstance(error, DivergedError) else Outcome.OUT_OF_DISK


def _record(
    run_dir: Path, rank: int, outcome: Outcome, reason: str, *, corrects_broken_connection: bool = False
) -> None:
    first_line = reason.strip().partition("\n")[0]
    ending = Ending(outcome=outcome, reason=first_line, rank=rank, attempt=attempt_of_this_process())
    if record_ending(run_dir, ending) or not corrects_broken_connection:
        return
    said = read_ending(run_dir)
    if said is not None and said.outcome is Outcome.FAILED and names_broken_connection(said.reason):
        replace_ending(run_dir, ending)

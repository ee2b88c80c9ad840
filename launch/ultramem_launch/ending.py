"""Why a run ended: ``status.json`` in its folder, written by whoever knows first, and believed over every exit status.

Launchers turn exit statuses into others (torchrun: 1; srun: that of whichever rank it ended). So a rank says itself why
it ends, before it does; the first to say it is right, for the others mostly end because it is gone. What is killed says
nothing: then the script of the job, which outlives its ranks, judges and writes the file.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ultramem_launch import exit_codes
from ultramem_launch.run_holder import ATTEMPT
from ultramem_launch.run_lock import LOCK_FILE, RunHeldError
from ultramem_megatron.errors import (
    DivergedError,
    FileError,
    MeetingError,
    RankLostError,
    RunFailure,
    UltraMemError,
    names_broken_connection,
)
from ultramem_megatron.file_failures import is_mendable, named_failure
from ultramem_megatron.files import create_text, write_text

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"
KILLED_BY_SIGNAL = 128
"""And its number, as a shell reports it."""


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
    INTERRUPTED = "interrupted"


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
    Outcome.INTERRUPTED: Rule(exit_codes.INTERRUPTED, False, "Ctrl-C twice, or before training began; nothing saved"),
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
    killed_by: int | None = None
    """Number of the signal that ended a rank of ``--local``, which then ends with 128 and it."""
    time: float = field(default_factory=lambda: round(time.time(), 3))
    """Seconds since 1970."""

    @property
    def exit_status(self) -> int:
        """By ``RULES``, but for a rank that was killed: as a shell reports it."""
        return RULES[self.outcome].exit_status if self.killed_by is None else 128 + self.killed_by

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "exit_status": self.exit_status}


def clear_ending(run_dir: Path) -> None:
    """Forget how the run ended before; for the one process that starts it again."""
    (run_dir / STATUS_FILE).unlink(missing_ok=True)


def record_ending(run_dir: Path, ending: Ending) -> bool:
    """Write the status file if nobody has yet. A refusal leaves nothing in a folder in which no run has begun.

    Returns:
        Whether it was written; if not, another process knew before.
    """
    try:
        if not run_dir.is_dir() or (ending.outcome is Outcome.BAD_INPUT and _is_new(run_dir)):
            return False
        create_text(run_dir / STATUS_FILE, _text(ending))
    except FileExistsError:
        return False
    except OSError as error:  # a full disk, perhaps; what ended the run must still reach whoever started it
        logger.warning("%s: %s could not be written: %s", run_dir / STATUS_FILE, ending.outcome, error)
        return False
    return True


def _is_new(run_dir: Path) -> bool:
    """Whether it holds no more than the lock of this start."""
    return {path.name for path in run_dir.iterdir() if not path.name.startswith(".")} == {LOCK_FILE}


def _text(ending: Ending) -> str:
    return json.dumps(ending.to_dict(), indent=2) + "\n"


def replace_ending(run_dir: Path, ending: Ending) -> None:
    """Write the status file over what a rank took for the cause; for the job's script."""
    write_text(run_dir / STATUS_FILE, _text(ending))


def read_ending(run_dir: Path) -> Ending | None:
    """How the run ended; None while it runs, or when what is there is no status file, which is then named."""
    path = run_dir / STATUS_FILE
    try:
        content = json.loads(path.read_bytes())
        content.pop("exit_status")
        return Ending(**{**content, "outcome": Outcome(content["outcome"])})
    except OSError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        logger.warning("%s is damaged and passed over", path)
        return None


def attempt_of_this_process() -> str:
    """``ULTRAMEM_ATTEMPT``, or ""."""
    return os.environ.get(ATTEMPT, "")


def settle(run_dir: Path, status: int) -> int:
    """The exit status of a run whose ranks have ended, and the same in the status file; for ``--local``.

    Args:
        run_dir: Of the run.
        status: What the ranks ended with; believed only where none of them has said why.
    """
    said = read_ending(run_dir)
    if said is None and status != exit_codes.BAD_INPUT:
        said = _ending_by_status(status)
        record_ending(run_dir, said)
    return status if said is None else said.exit_status


def _ending_by_status(status: int) -> Ending:
    if status == exit_codes.FINISHED:
        return Ending(outcome=Outcome.FINISHED)
    if status == exit_codes.STOPPED:
        return Ending(
            outcome=Outcome.PREEMPTED, reason="asked to stop before training began; there was nothing to save"
        )
    if status == exit_codes.INTERRUPTED:
        return Ending(outcome=Outcome.INTERRUPTED, reason="Ctrl-C; nothing was saved")
    known = {rule.exit_status: outcome for outcome, rule in RULES.items() if rule.exit_status}
    killed_by = status - KILLED_BY_SIGNAL if status > KILLED_BY_SIGNAL else None
    reason = f"a rank ended with status {status}"
    return Ending(outcome=known.get(status, Outcome.FAILED), reason=reason, killed_by=killed_by)


@contextmanager
def failures_recorded(run_dir: Path, rank: int, may_write: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """What is raised inside is written down as the run's ending, and raised on.

    Args:
        run_dir: Of the run.
        rank: Of this process.
        may_write: Asked before; False while the folder is another start's.

    Raises:
        FileError: For an ``OSError`` that somebody can mend.
    """

    def note(outcome: Outcome, reason: str, *, corrects: bool = False) -> None:
        if may_write():
            _record(run_dir, rank, outcome, reason, corrects_broken_connection=corrects)

    try:
        yield
    except RunHeldError:
        raise  # the folder is another start's
    except (UltraMemError, RunFailure) as error:
        note(outcome_of(error), str(error))
        raise
    except RankLostError as error:
        note(Outcome.FAILED, str(error), corrects=True)
        raise
    except OSError as error:
        if not is_mendable(error):
            note(Outcome.FAILED, f"{type(error).__name__}: {error}")
            raise
        named = named_failure(error, doing="used")
        note(Outcome.BAD_INPUT, str(named))
        raise named from error
    except Exception as error:
        note(Outcome.FAILED, f"{type(error).__name__}: {error}")
        raise


def outcome_of(error: UltraMemError | RunFailure) -> Outcome:
    """What the status file calls it, and so the exit status."""
    if isinstance(error, FileError) and error.may_pass:
        return Outcome.FAILED
    if isinstance(error, UltraMemError):
        return Outcome.BAD_INPUT
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

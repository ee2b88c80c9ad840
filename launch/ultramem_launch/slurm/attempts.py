"""Every start of a job and what came of it, and whether to start once more. Pure decisions; ``batch.py`` acts on them.

The rule that bounds restarts: a start that left a newer checkpoint than there ever was may be followed by any number of
others, for a run has only so many steps. ``max_restarts`` in a row that got no further end the job. If starts from one
checkpoint keep failing the fault may be in it: it is set aside, and the next start goes on from the one before.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ultramem_launch.ending import RULES, Ending, Outcome

SUSPECT_AFTER = 2
"""Starts in a row that failed from one checkpoint: then the fault is taken to be in it."""
SUSPICIOUS = (Outcome.FAILED, Outcome.HUNG)
"""Ends for which a checkpoint can be to blame; others say nothing about it."""

KILLED_BY_SIGNAL = 128
BAD_INPUT_STATUS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One start of a job."""

    name: str
    """``<job id>.<restart>``."""
    nodes: int
    first_step: int
    """Of the checkpoint that it went on from; 0 without one."""
    started: float
    last_step: int | None = None
    """Newest checkpoint when it ended; None while it runs."""
    outcome: Outcome | None = None
    reason: str = ""
    ended: float | None = None
    set_aside: int | None = None
    """Step of the checkpoint that was set aside after it."""

    @property
    def job(self) -> str:
        """Without the restart."""
        return self.name.rpartition(".")[0]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def is_sound(cls, content: dict[str, Any]) -> bool:
        """Whether ``from_dict`` can take it."""
        try:
            one = cls.from_dict(content)
        except (KeyError, TypeError, ValueError):
            return False
        numbers = (one.nodes, one.first_step, one.started)
        return isinstance(one.name, str) and all(isinstance(number, int | float) for number in numbers)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Attempt":
        """What ``to_dict`` gave."""
        outcome = content["outcome"]
        return cls(**{**content, "outcome": Outcome(outcome) if outcome else None})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the job does next."""

    ending: Ending
    restart: bool
    words: str
    """For the log."""
    set_aside: int | None = None
    """Step of a checkpoint that the next start must not use."""


def judge(
    *,
    ending: Ending | None,
    step_status: int,
    asked: str,
    lost_nodes: Sequence[str],
    attempt: str,
    killed: str = "",
    disk_is_full: bool = False,
) -> Ending:
    """Why this start ended.

    Args:
        ending: What a rank or the checks of the nodes said, None if nothing was said.
        step_status: srun's exit status; believed only where nobody said anything.
        asked: Signal that the script got: ``USR1`` (the time limit is near), ``TERM`` or ``none``.
        lost_nodes: Nodes that no longer answer.
        attempt: Of this start.
        killed: Which rank a signal ended before any other had failed, in one sentence; empty if none.
        disk_is_full: Nothing more can be written in the run folder, also not why the run ended.
    """
    if lost_nodes and may_have_lost_nodes(ending):
        # the ranks of the other nodes failed because of it
        words = f"{' and '.join(lost_nodes)} no longer {'answers' if len(lost_nodes) == 1 else 'answer'}"
        return Ending(outcome=Outcome.NODE_LOST, reason=words, attempt=attempt)
    if disk_is_full and (ending is None or ending.outcome is Outcome.FAILED):
        words = "no room is left in the run folder; checkpoints are as they were: make room, and submit again"
        words += f" (rank {ending.rank} said: {ending.reason})" if ending else ""
        return Ending(outcome=Outcome.OUT_OF_DISK, reason=words, attempt=attempt)
    if killed and asked == "none" and (ending is None or ending.outcome in (Outcome.FAILED, Outcome.NOT_MET)):
        # the others only say that a connection broke
        return Ending(outcome=Outcome.FAILED, reason=killed, attempt=attempt)
    if ending is not None:
        return ending
    if asked != "none":
        words = f"SIG{asked} ended it before it could save"
        return Ending(outcome=Outcome.PREEMPTED, reason=words, attempt=attempt)
    if step_status == BAD_INPUT_STATUS:
        return Ending(outcome=Outcome.BAD_INPUT, reason="see the end of the log", attempt=attempt)
    words = f"it ended without a word, srun's status is {step_status}"
    if step_status > KILLED_BY_SIGNAL:
        words += f": a rank was killed by signal {step_status - KILLED_BY_SIGNAL} (9 is often a lack of memory)"
    return Ending(outcome=Outcome.FAILED, reason=words, attempt=attempt)


def may_have_lost_nodes(ending: Ending | None) -> bool:
    """Whether a node that is gone would explain what was said."""
    return ending is None or ending.outcome in (Outcome.FAILED, Outcome.HUNG, Outcome.NOT_MET)


def decide(
    ending: Ending, asked: str, attempts: Sequence[Attempt], max_restarts: int | None, checkpoints: Sequence[int] = ()
) -> Verdict:
    """Whether to start again, and from which checkpoint.

    Args:
        ending: Of the last attempt.
        asked: As for ``judge``.
        attempts: Of this job, or of all jobs of a chain, the one that ended last.
        max_restarts: Starts in a row without a newer checkpoint that may follow the first such. None: of a chain, which
            is as long as was asked for.
        checkpoints: Steps of those that the next start may use, newest first.
    """
    what = f"{ending.outcome}: {ending.reason}" if ending.reason else str(ending.outcome)
    if not RULES[ending.outcome].restarts:
        return Verdict(ending, False, what)
    if asked == "TERM":
        return Verdict(ending, False, f"{what}; SIGTERM came from Slurm or a user, who decide whether it goes on")
    fruitless = count_fruitless(attempts)
    if max_restarts is not None and fruitless > max_restarts:
        words = f"{what}; gives up after {fruitless} starts in a row without a newer checkpoint"
        return Verdict(ending, False, words)
    again = f"starts again ({fruitless} of {max_restarts} starts without progress)"
    words = f"{what}; {again if max_restarts is not None else 'the next job of the chain goes on'}"
    suspect = find_suspect(attempts)
    older = next((step for step in checkpoints if suspect is not None and step < suspect), None)
    if suspect not in checkpoints or older is None:
        return Verdict(ending, True, words)
    words += f", from step {older}: the checkpoint of step {suspect}, from which starts keep failing, is set aside"
    return Verdict(ending, True, words, suspect)


def count_fruitless(attempts: Sequence[Attempt]) -> int:
    """How many at the end of the list left no checkpoint newer than all before.

    What is done again after going back to an older checkpoint is no progress: or a run could go round for ever.
    """
    count = furthest = 0
    for attempt in attempts:
        furthest = max(furthest, attempt.first_step)
        reached = attempt.last_step or 0
        count = 0 if reached > furthest else count + 1
        furthest = max(furthest, reached)
    return count


def find_suspect(attempts: Sequence[Attempt]) -> int | None:
    """Step of the checkpoint from which ``SUSPECT_AFTER`` starts in a row failed or hung without leaving a newer one.

    Starts that ended for a reason outside of the run, such as a lost node, are not counted.
    """
    step, failed = attempts[-1].first_step, 0
    for attempt in reversed(attempts):
        if attempt.first_step != step or (attempt.last_step or 0) > step:
            break
        if attempt.set_aside is not None:  # whoever took the mark away since gives it as many starts again
            break
        failed += attempt.outcome in SUSPICIOUS
    return step if failed >= SUSPECT_AFTER and attempts[-1].outcome in SUSPICIOUS else None


def close(attempt: Attempt, ending: Ending, last_step: int, now: float) -> Attempt:
    """The attempt with its end."""
    return replace(attempt, outcome=ending.outcome, reason=ending.reason, last_step=last_step, ended=now)

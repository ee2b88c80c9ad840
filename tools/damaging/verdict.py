"""Whether a verb did right by a damaged file."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from damaging.calls import Ended
from damaging.damages import Damage
from damaging.stage import DATA
from damaging.verbs import Verb
from ultramem_launch import exit_codes

LONGEST_QUOTE = 400
HINT = "ultramem data verify"
"""Stands where a start says which files of data it has not read whole."""


class Verdict(StrEnum):
    """The first four are right."""

    REFUSED = "refused"
    """In one paragraph, with the exit status of bad input."""
    NAMED = "named"
    """It went on without the file, or with the one before it, and said so."""
    TOLD = "told"
    """It took a file of data, gave something else, and said that it had not compared it with its hash."""
    SAME = "same"
    """What it gave is what it gives without damage: it does not read the file, or has made it anew."""
    SILENT = "silent"
    """It took the file, and gave something else, without a word."""
    UNNOTICED = "unnoticed"
    """It exists to find such a change, and did not."""
    TRACEBACK = "traceback"
    FAILED = "failed"
    """Another exit status than that of bad input."""
    HUNG = "hung"

    @property
    def is_fault(self) -> bool:
        return self not in (Verdict.REFUSED, Verdict.NAMED, Verdict.TOLD, Verdict.SAME)


@dataclass(frozen=True, slots=True)
class Row:
    """One case."""

    file: str
    damage: Damage
    verb: str
    verdict: Verdict
    status: int
    seconds: float
    said: str
    """The end of what it wrote to standard error."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.damage, self.verb


def judge(verb: Verb, file: str, ended: Ended, result: str, undamaged: str) -> Verdict:
    """What to think of a call.

    Args:
        verb: Called.
        file: Damaged, by its path in the case.
        ended: How it ended.
        result: What it gave, if it ended well.
        undamaged: What it gives without damage.
    """
    if ended.hung:
        return Verdict.HUNG
    if "Traceback (most recent call last)" in ended.out + ended.err:
        return Verdict.TRACEBACK
    if ended.status == exit_codes.BAD_INPUT:
        return Verdict.REFUSED
    if ended.status != exit_codes.FINISHED:
        return Verdict.FAILED
    if verb.answers_for(file):
        return Verdict.UNNOTICED
    if result == undamaged:
        return Verdict.SAME
    if is_named(file, ended):
        return Verdict.NAMED
    return Verdict.TOLD if file.startswith(f"{DATA}/") and HINT in ended.out + ended.err else Verdict.SILENT


def is_named(file: str, ended: Ended) -> bool:
    """Whether the file, or the checkpoint that it is of, stands in what was said."""
    path = Path(file)
    return path.name in ended.err or (path.parent.name.startswith("step_") and path.parent.name in ended.err)


def quote(ended: Ended) -> str:
    """The end of what it said."""
    return " ".join(ended.err.split())[-LONGEST_QUOTE:]

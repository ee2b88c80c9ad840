"""Which rank was killed, from what srun says of its tasks.

A killed rank writes nothing, and the others only know that a connection broke. srun is told by the node of every task
that ends, how it ended, and prints it: the one witness that is there without a watchdog, names task and node together,
and tells a signal from an exit status. Its word comes in the order of the messages, so the first task that ended badly
is the cause; what it says after it has ended the step itself concerns tasks that srun killed.
"""

import re
import signal
from collections.abc import Iterable
from pathlib import Path

_TASKS = re.compile(r"srun: error: (?P<nodes>\S+): tasks? (?P<ranks>[\d,-]+): (?P<how>.+)")
"""``srun: error: n2: task 3: Killed``, ``... n[1-2]: tasks 0-1,3: Exited with exit code 1``. Ranks' own lines have a
label before them (``srun --label``)."""
_ENDS_STEP = re.compile(r"srun: (?:.*Terminating (?:StepId|job step)|Force Terminated|Job step aborted)")
_OUT_OF_MEMORY = "Out Of Memory"
"""In place of a signal where Slurm limits memory with cgroups."""
_BY_TEXT = {signal.strsignal(number): number for number in signal.Signals}
_OFTEN_MEMORY = " (often a lack of memory)"


def find_killed(log: Path) -> str:
    """Who was killed, in one sentence; empty if nobody was, or somebody else had failed before.

    Args:
        log: Of the ranks of one start.
    """
    if not log.is_file():
        return ""
    with log.open(encoding="utf-8", errors="replace") as lines:
        return first_killed(lines)


def first_killed(lines: Iterable[str]) -> str:
    """As ``find_killed``, of the lines of a log."""
    for line in lines:
        if _ENDS_STEP.match(line):
            return ""
        found = _TASKS.match(line)
        if found:
            return _words(found["nodes"], found["ranks"], found["how"].strip())
    return ""


def _words(nodes: str, ranks: str, how: str) -> str:
    how = how.removesuffix(" (core dumped)")
    several = not ranks.isdecimal()
    who = f"rank{'s' if several else ''} {ranks} on {nodes} {'were' if several else 'was'} killed"
    if how == _OUT_OF_MEMORY:
        return f"{who} for lack of memory"
    number = _BY_TEXT.get(how)
    if number is None:  # an exit status: then the rank has said why itself
        return ""
    return f"{who} by {number.name}{_OFTEN_MEMORY if number == signal.SIGKILL else ''}"

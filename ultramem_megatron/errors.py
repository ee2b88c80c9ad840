"""The errors a user can meet. Each says where, what, why, and what to do; ``assert`` is for our own bugs."""

import re
import reprlib

MOST_CHARACTERS = 1_000
"""Of an error as it is printed."""


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple, self.maxset = 2, 4, 6, 6, 6
        self.maxstring, self.maxlong, self.maxother = 80, 60, 80


def shown(value: object) -> str:
    """A value from outside as it can stand in a message: as Python writes it, but never long."""
    return _Short().repr(value)


def one_paragraph(text: str) -> str:
    """What may be shown on a terminal of a message that holds text from outside: one line, no character that a terminal
    obeys or hides, at most ``MOST_CHARACTERS``. The middle is left out, for the end says what to do."""
    joined = re.sub(r"\s*[\r\n]\s*", " ", text.strip())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in joined)
    if len(line) <= MOST_CHARACTERS:
        return line
    left_out = f" ... {len(line) - MOST_CHARACTERS} characters and more are left out here ... "
    head = (MOST_CHARACTERS - len(left_out)) // 2
    return line[:head] + left_out + line[len(line) - (MOST_CHARACTERS - len(left_out) - head) :]


class UltraMemError(ValueError):
    """Something the user can mend. The command line prints it as one paragraph and exits with 2."""


class ConfigError(UltraMemError):
    """A setting is unknown, out of range, or contradicts another one."""


class PlanError(UltraMemError):
    """No partition of the memory tables fits the cluster, or a plan belongs to another run."""


class LaunchError(UltraMemError):
    """The processes of a run were started in a way that cannot work."""


class DataError(UltraMemError):
    """A corpus, tokenizer or indexed dataset is missing, damaged or does not fit the run."""


class CheckpointError(UltraMemError):
    """A checkpoint is incomplete, damaged or belongs to another model."""


class FileError(UltraMemError, OSError):
    """A place that cannot be written or read. An ``OSError``, too, for whoever can do without the file."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        """
        Args:
            message: The paragraph.
            may_pass: It may be over soon, as when a server of files restarts: then the next start may succeed.
        """
        super().__init__(message)
        self.may_pass = may_pass


class RunFailure(RuntimeError):
    """A run ends early for a reason that has a name and an exit status of its own; no setting is wrong."""


class MeetingError(RunFailure):
    """The ranks did not reach each other; the next start may succeed, for it has another port or other machines."""


class DivergedError(RunFailure):
    """The loss is lost, and skipping or going back did not help."""


class OutOfDiskError(RunFailure):
    """There was no room for a checkpoint; those before it are untouched."""


class RankLostError(RuntimeError):
    """The process of another rank is gone, and it had not said why: a signal has ended it."""


_BROKEN_CONNECTION = (
    "Connection closed by peer",  # gloo
    "Connection reset by peer",
    "Broken pipe",
    "Connection was likely closed",  # torch's TCPStore
    "remote process exited or there was a network error",  # nccl
)


def names_broken_connection(text: str) -> bool:
    """Whether an error says no more than that a connection to another rank broke. Libraries have no type for it."""
    return any(part in text for part in _BROKEN_CONNECTION)

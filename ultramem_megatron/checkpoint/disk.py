"""Tells a full disk from other failures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ultramem_megatron.errors import FileError, OutOfDiskError, RunFailure, UltraMemError

_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large")
"""Of ENOSPC, EDQUOT and EFBIG; ranks tell each other of a failure by its text."""


def names_full_disk(failure: str) -> bool:
    """Whether a write failed because a disk, a quota or a file-size limit was full."""
    return any(text in failure for text in _TEXTS)


def root_of(error: BaseException) -> BaseException:
    """The full disk that ``error`` comes from, else ``error``: torch's writer, closing, stumbles over what it could not
    write."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        if names_full_disk(str(found)):
            return found
        seen.append(found)
        found = found.__cause__ or found.__context__
    return error


@contextmanager
def full_disk_named(run_dir: Path) -> Iterator[None]:
    """What fails inside because a disk is full is raised as such: metrics and plots of a run, not only its checkpoints.

    Raises:
        OutOfDiskError: A disk or a quota is full.
    """
    try:
        yield
    except RunFailure:
        raise
    except Exception as error:
        if isinstance(error, UltraMemError) and not isinstance(error, FileError):
            raise
        root = root_of(error)
        if not isinstance(root, OSError) or not names_full_disk(str(root)):
            raise
        raise OutOfDiskError(
            f"no room for what the run writes in {run_dir}: {root}; checkpoints are as they were: make room, and start "
            "the command again"
        ) from error

"""Tells a full disk from other failures of a save, however deep it lies in what the writers raised."""

import errno
from collections.abc import Iterator

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large")
"""Writers in other processes, and those of other ranks, send home no more than a text."""


def is_out_of_disk(error: BaseException) -> bool:
    """Whether a write failed because a disk, a quota or a file-size limit was full."""
    return any(
        (isinstance(found, OSError) and found.errno in _NO_ROOM) or any(text in str(found) for text in _TEXTS)
        for found in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__

"""What the operating system refuses, as a paragraph: path, cause, remedy."""

import errno
import os
from pathlib import Path

from ultramem_megatron.errors import FileError
from ultramem_megatron.file_parts import PART

SHOWN = 300
"""Characters of a path in a message."""

_ROOM = "make room, or name a place on another disk"
_RIGHTS = "get the rights to it, or name another place"
_REMEDIES = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "it is on a file system that is read-only; name another place",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of files, or name another place",
    errno.ENOTDIR: "a part of the path is a file; name another place",
    errno.EEXIST: "a file is where a folder is needed; move it away, or name another place",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENOENT: "a part of the path is missing, or is a link to nothing; mend it, or name another place",
    errno.ELOOP: "links lead in a circle; name another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.ENFILE)
"""What a network file system or a busy machine says for a while."""


def named_failure(error: OSError, path: Path | None = None, doing: str = "written") -> FileError:
    """The paragraph about a failure.

    Args:
        error: What the operating system said.
        path: As the user knows it; if None, what the error names.
        doing: As for ``failures_named``.
    """
    named = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    shown = str(path) if path is not None else named or "a file"
    where = f" ({_printable(named)})" if named and not _is_of(named, shown) else ""
    cause = _printable(error.strerror or str(error) or type(error).__name__)
    remedy = _REMEDIES.get(error.errno or 0, "try again, or name another place")
    return FileError(
        f"{_printable(shown)} cannot be {doing}: {cause}{where}; {remedy}", may_pass=error.errno in _PASSING
    )


def is_mendable(error: OSError) -> bool:
    """Whether it is of a kind that somebody can mend: rights, room, a path. A missing file may be a fault of ours."""
    return error.errno in _REMEDIES and error.errno not in (errno.ENOENT, errno.EEXIST)


def _is_of(named: str, shown: str) -> bool:
    """Whether the name says no more than the path does: it is the path itself, or unfinished beside it."""
    return Path(named) == Path(shown) or named.endswith(PART)


def _printable(words: str) -> str:
    """A path or cause on one line, of a length that can be read."""
    text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in words)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}"

"""Tells a full disk from other failures of a save."""

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

"""Names of files that a checkpoint lists: they lie in its folder, whatever the list says."""

from pathlib import Path, PurePosixPath

_LONGEST = 255
"""Bytes of a name on common file systems."""


def why_not_inside(folder: Path, name: object) -> str:
    """Why ``name`` is none of a file inside ``folder``; empty if it is one, or would be if it were there.

    A link is none: it may lead anywhere, and to another place after it was looked at.
    """
    if not isinstance(name, str) or not name.isprintable():
        return "is no name of a file"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return "leads out of the folder"
    if str(path) != name or name == "." or any(len(part.encode()) > _LONGEST for part in path.parts):
        return "is no plain name of a file"
    for inner in (path, *path.parents):
        if inner.parts and (folder / inner).is_symlink():
            return "is a link" if inner == path else "lies behind a link"
    return ""


def shown(name: object, longest: int = 120) -> str:
    """For a message: on one line, without control characters, and not without end."""
    text = name if isinstance(name, str) and name.isprintable() else ascii(name)
    return text if len(text) <= longest else f"{text[:longest]}..."

"""What can happen to a file, and which files there are."""

from enum import StrEnum
from pathlib import Path


class Damage(StrEnum):
    """Done to one file; the others stay as they are."""

    TRUNCATED = "truncated"
    """Its second half is gone."""
    FLIPPED = "flipped"
    """One bit in its middle."""
    ZEROED = "zeroed"
    """All of it, at its length."""
    DELETED = "deleted"
    FOREIGN = "foreign"
    """That of another run, or of another data folder, in its place."""


def files_of(folder: Path) -> list[str]:
    """Every file below, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def damaged(content: bytes, damage: Damage, foreign: bytes | None) -> bytes | None:
    """What the file holds afterwards; None where it is gone.

    Raises:
        LookupError: The damage would change nothing, or there is no foreign file.
    """
    if damage is Damage.DELETED:
        return None
    if damage is Damage.FOREIGN and foreign is None:
        raise LookupError
    after = foreign if damage is Damage.FOREIGN else _changed(content, damage)
    if after == content:
        raise LookupError
    return after


def _changed(content: bytes, damage: Damage) -> bytes:
    if damage is Damage.ZEROED:
        return bytes(len(content))
    middle = len(content) // 2
    if damage is Damage.TRUNCATED or not content:
        return content[:middle]
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def counterpart(file: str, other: Path) -> Path | None:
    """The file of ``other`` that has the same place, but for what a name says of time or content."""
    if (other / file).is_file():
        return other / file
    kind = "events.out.tfevents.*" if "tfevents" in file else Path(file).name
    return next((path for path in sorted(other.rglob(kind)) if path.is_file()), None)

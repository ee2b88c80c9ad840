"""Names, hashes, and files that appear whole or not at all."""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` beside ``path`` and rename, so that a reader sees the old file or the new one."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """As ``write_json``, for text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)  # what a full disk has cut off
        raise


def read_bounded(path: Path, most_bytes: int) -> str:
    """The text of a file that somebody handed in.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no regular file, has more than ``most_bytes``, or is no UTF-8.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")  # to open a pipe would wait for a writer
    with path.open("rb") as stream:
        data = stream.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    return data.decode("utf-8")


def read_json(text: str) -> Any:
    """JSON that somebody handed in.

    Raises:
        ValueError: It is no JSON, has a key twice in one object, a number without end (``NaN``, thousands of digits),
            or lists within lists too deep to read.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("lists and objects lie too deep inside of each other") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'the key "{key[:80]}" stands twice in one object; keep one of the two')
        found[key] = value
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def file_is_there(path: Path) -> bool:
    """As ``path.is_file()``, but False as well for a name that no file can have, or a folder that must not be read."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False

"""Hashes, and files that appear whole or not at all. Where they cannot, a paragraph says so."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ultramem_megatron.errors import FileError
from ultramem_megatron.file_failures import named_failure
from ultramem_megatron.file_parts import PART, create, hold, link, open_part, part_path, remove_if_left, try_place


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """``write_text`` of a JSON document."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside ``path`` and rename: a reader sees the old file or the new one, also after a power failure. What
    killed writers of this file left is removed. Folders are made.

    Raises:
        FileError: The place cannot be written.
    """
    remove_leftovers(path.parent, path.name)
    with written_whole(path) as stream:
        stream.write(text.encode())


def replace_text(path: Path, text: str) -> None:
    """As ``write_text``, for what is written again and again: nobody looks for leftovers, and a power failure may take
    it."""
    with written_whole(path, lasting=False) as stream:
        stream.write(text.encode())


def create_text(path: Path, text: str) -> None:
    """Write a file that must not be there yet; of several that try at once one succeeds.

    Raises:
        FileExistsError: It is there.
        FileError: The place cannot be written.
    """
    with failures_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part, stream = open_part(path)
        try:
            with stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
            created = link(part, path)
        finally:
            part.unlink(missing_ok=True)
        created = created or create(path, text)
    if not created:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


@contextmanager
def written_whole(path: Path, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content becomes ``path`` when the block ends well; else ``path`` stays as it was.

    Folders are made. A device or a pipe, such as /dev/stdout, is written to directly.

    Args:
        path: A file, which may be there or not.
        lasting: Wait until the content is on disk before the rename, so that a power failure leaves no empty file.

    Raises:
        FileError: The place cannot be written.
    """
    with failures_named(path):
        if not _is_replaced(path):
            with path.open("wb") as direct:
                yield direct
            return
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        part, stream = open_part(path)
        try:
            with stream:
                yield stream
                stream.flush()
                if lasting:
                    os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)  # what a full disk has cut off, or Ctrl-C
            raise


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in ``parent`` that only this user may enter, removed at the end unless it was renamed meanwhile.

    Args:
        parent: Made if missing.
        name: What it is for; part of its name, by which ``remove_leftovers`` finds it.

    Raises:
        FileError: The place cannot be written, also inside the block.
    """
    with failures_named(parent / name):
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            folder = part_path(parent / name)
            folder.mkdir(mode=0o700)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if hold(descriptor):
                break
            os.close(descriptor)
        try:
            yield folder
        finally:
            os.close(descriptor)
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what killed writers left unfinished in ``folder``, and nothing that is still being written.

    Args:
        folder: Looked at itself, without the folders in it. Need not exist.
        name: Of the file or folder that was to be written; any if not said.
    """
    pattern = re.compile(rf"\.{re.escape(name) if name else '.+'}\.[0-9a-f]{{16}}{re.escape(PART)}")
    try:
        found = [Path(entry.path) for entry in os.scandir(folder) if pattern.fullmatch(entry.name)]
    except OSError:  # not there, or not for us to read: whoever writes there says so
        return
    for leftover in found:
        with suppress(OSError):  # gone meanwhile, or another user's
            remove_if_left(leftover)


def check_can_write(path: Path) -> None:
    """Try whether ``write_text`` could, before work is done whose result it is to take. Folders are made.

    Raises:
        FileError: It could not.
    """
    with failures_named(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if _is_replaced(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try_place(path)
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def check_folder(folder: Path) -> None:
    """Try whether files can be made in ``folder``, which is made if missing.

    Raises:
        FileError: They cannot.
    """
    with failures_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try_place(folder / "probe")


@contextmanager
def failures_named(path: Path, doing: str = "written") -> Iterator[None]:
    """What the operating system refuses inside is raised as a paragraph with path, cause and remedy.

    Args:
        path: As the user knows it.
        doing: What it cannot be: ``written``, ``read``, ...

    Raises:
        FileError: An ``OSError`` was raised inside.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise named_failure(error, path, doing) from error


def _is_replaced(path: Path) -> bool:
    """Whether ``path`` is, or is to be, a plain file that another may take the place of."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return True
    link = path.readlink() if path.is_symlink() else path
    return stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and not str(link).startswith(("/proc/", "/dev/")))


def read_bounded(path: Path, most_bytes: int) -> str:
    """The text of a file that somebody handed in.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no regular file, has more than ``most_bytes``, or is no UTF-8.
    """
    if str(path) == os.devnull:
        return ""  # how one says: none
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

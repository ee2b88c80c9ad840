"""Names, hashes, and files that appear whole or not at all.

What is not whole yet lies beside its place under a name that nobody can guess, so that nobody can plant a link there.
Who writes it holds a lock on it, which the kernel takes away when the process ends, however it ends: what is left of a
killed writer is told from what is being written, and removed by the next.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ultramem_megatron.errors import FileError

PART = ".part"
FORGOTTEN_SECONDS = 86_400.0
"""On a file system without locks, what has not been touched for so long belongs to nobody."""
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
        part, stream = _open_part(path)
        try:
            with stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
            created = _link(part, path)
        finally:
            part.unlink(missing_ok=True)
        created = created or _create(path, text)
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
            with path.open("wb", buffering=0) as stream:
                yield stream  # type: ignore[misc]
            return
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        part, stream = _open_part(path)
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
            folder = _part_path(parent / name)
            folder.mkdir(mode=0o700)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if _hold(descriptor):
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
            _remove_if_left(leftover)


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
            _try(path)
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def check_folder(folder: Path) -> None:
    """Try whether files can be made in ``folder``, which is made if missing.

    Raises:
        FileError: They cannot.
    """
    with failures_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _try(folder / "probe")


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


def _is_replaced(path: Path) -> bool:
    """Whether ``path`` is, or is to be, a plain file that another may take the place of."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return True
    link = path.readlink() if path.is_symlink() else path
    return stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and not str(link).startswith(("/proc/", "/dev/")))


def _part_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{PART}")


def _open_part(path: Path) -> tuple[Path, BinaryIO]:
    """An empty file beside ``path``, which this process holds as long as it is open."""
    while True:
        part = _part_path(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(part, flags, 0o666)
        if _hold(descriptor):
            return part, os.fdopen(descriptor, "wb")
        os.close(descriptor)


def _try(path: Path) -> None:
    """Write a little under a name beside ``path``, and remove it."""
    part, stream = _open_part(path)
    try:
        with stream:
            stream.write(bytes(1))  # a full disk may still take an empty file
    finally:
        part.unlink(missing_ok=True)


def _hold(descriptor: int) -> bool:
    """Lock it. False if somebody who removes leftovers was faster; then it is gone, or will be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return os.fstat(descriptor).st_nlink > 0


def _remove_if_left(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            if time.time() - os.fstat(descriptor).st_mtime < FORGOTTEN_SECONDS:
                return
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


def _link(part: Path, path: Path) -> bool:
    """Give a finished file its second name. False if that one is taken, or the file system knows no second names."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _create(path: Path, text: str) -> bool:
    """Where there are no second names; a reader may see it before its content."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(text.encode())
    return True

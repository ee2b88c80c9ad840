"""What is not whole yet: a file or folder beside its place, of a name that nobody can guess, held while it is written.

Who writes it holds a lock on it, which the kernel takes away when the process ends, however it ends: so what a killed
writer left is told from what is being written. On file systems without locks it is told by its age.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from pathlib import Path
from typing import BinaryIO

PART = ".part"
FORGOTTEN_SECONDS = 86_400.0
"""On a file system without locks, what has not been touched for so long belongs to nobody."""


def part_path(path: Path) -> Path:
    """A name beside ``path`` for what is to become it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{PART}")


def open_part(path: Path) -> tuple[Path, BinaryIO]:
    """An empty file beside ``path``, which this process holds as long as it is open."""
    while True:
        part = part_path(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(part, flags, 0o666)
        if hold(descriptor):
            return part, os.fdopen(descriptor, "wb")
        os.close(descriptor)


def try_place(path: Path) -> None:
    """Write a little under a name beside ``path``, and remove it."""
    part, stream = open_part(path)
    try:
        with stream:
            stream.write(bytes(1))  # a full disk may still take an empty file
    finally:
        part.unlink(missing_ok=True)


def hold(descriptor: int) -> bool:
    """Lock it. False if somebody who removes leftovers was faster; then it is gone, or will be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return os.fstat(descriptor).st_nlink > 0


def remove_if_left(path: Path) -> None:
    """Remove an unfinished file or folder, unless its writer lives.

    Raises:
        OSError: It is gone already, or another user's.
    """
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


def link(part: Path, path: Path) -> bool:
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


def create(path: Path, text: str) -> bool:
    """Where there are no second names; a reader may see it before its content."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(text.encode())
    return True

"""What ``torch.save`` writes, a zip archive around a pickle, anywhere inside a file; nothing is unpickled here."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_PICKLE = "data.pkl"


@contextmanager
def open_archive(file: Path, start: int, length: int) -> Iterator[zipfile.ZipFile]:
    """The archive in some consecutive bytes of a file.

    Raises:
        OSError, zipfile.BadZipFile: There is none.
    """
    with file.open("rb") as stream, zipfile.ZipFile(io.BufferedReader(_Slice(stream, start, length))) as archive:
        yield archive


def pickle_in(archive: zipfile.ZipFile) -> tuple[str, bytes]:
    """The archive's folder, with the slash at its end, and the pickle in it.

    Raises:
        ValueError: There is not one, or it is compressed: a small file could then be an endless one.
    """
    (entry,) = [entry for entry in archive.infolist() if entry.filename.endswith(f"/{_PICKLE}")]
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its pickle is compressed")
    return entry.filename.removesuffix(_PICKLE), archive.read(entry)


class _Slice(io.RawIOBase):
    """Some bytes of a file as a file of its own."""

    def __init__(self, stream: BinaryIO, start: int, length: int) -> None:
        self.stream, self.start, self.length, self.place = stream, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.length}[whence]
        self.place = origin + offset
        if self.place < 0:
            raise ValueError("a place before the record")
        return self.place

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self.length - self.place))
        self.stream.seek(self.start + self.place)
        data = self.stream.read(size)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)

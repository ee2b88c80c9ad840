"""The files of documents in a folder of raw text: which there are, and their plain content."""

import gzip
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ultramem_megatron.errors import DataError
from ultramem_megatron.files import failures_named, temporary_folder

_ENDINGS = (".jsonl.gz", ".json.gz", ".jsonl", ".json")
_NOT_TEXT = ("manifest.json", "dataset.json", "tokenizer.json")
"""Of ``ultramem data`` itself; they may lie in the same folder."""
_RESERVED = ("index_cache", "tasks")
"""Folders of a data folder, so no names of sources."""
_SHOWN = 5
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class TextFile:
    """Lines of documents that can be read from any byte on."""

    path: Path
    """As the user knows it."""
    plain: Path
    """The same, decompressed."""


def find_text(raw: Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """Source -> file, for the names given or for every file of documents in ``raw``, sorted by name.

    A file of documents ends in .jsonl, .json, .jsonl.gz or .json.gz, in letters of any case.

    Raises:
        DataError: The folder or a file of it is missing, or two files make one source.
        FileError: The folder cannot be read.
    """
    present = _visible(raw)
    found: dict[str, Path] = {}
    for path in present:
        name = _source_name(path)
        if not name or path.name in _NOT_TEXT or (names and name not in names):
            continue
        if name in found:
            raise DataError(f"{raw} holds {found[name].name} and {path.name}, which make one source; move one away")
        if name in _RESERVED:
            raise DataError(
                f"{path}: a source cannot be named {name}, a data folder keeps other things there; rename it"
            )
        found[name] = path
    missing = sorted(set(names) - set(found))
    if missing:
        raise _not_there(raw, missing[0], present)
    if not found:
        raise DataError(
            f"{raw} holds no .jsonl file{_instead(present)}; fill it with `ultramem data fetch --out {raw}`"
        )
    return dict(sorted(found.items()))


def _visible(raw: Path) -> list[Path]:
    if not raw.is_dir():
        return []
    with failures_named(raw, "read"):
        return sorted(raw / entry.name for entry in os.scandir(raw) if entry.is_file() and entry.name[0] != ".")


def _source_name(path: Path) -> str:
    """The name without its ending; empty when it is no file of documents."""
    lower = path.name.lower()
    return next((path.name[: -len(ending)] for ending in _ENDINGS if lower.endswith(ending)), "")


def _not_there(raw: Path, name: str, present: Sequence[Path]) -> DataError:
    known = sorted({source for path in present if (source := _source_name(path)) and path.name not in _NOT_TEXT})
    has = f"the folder has {', '.join(known)}" if known else f"the folder has no .jsonl file{_instead(present)}"
    return DataError(
        f"{raw / name}.jsonl does not exist, {has}; fetch it with `ultramem data fetch --source {name} --out {raw}`"
    )


def _instead(present: Sequence[Path]) -> str:
    """What lies there that is none."""
    if not present:
        return ""
    more = f" and {len(present) - _SHOWN} more" if len(present) > _SHOWN else ""
    shown = ", ".join(path.name for path in present[:_SHOWN])
    return f" (nor .json, nor either of them with .gz), but {shown}{more}"


@contextmanager
def opened_text(path: Path, folder: Path) -> Iterator[TextFile]:
    """``path``, decompressed when it ends in .gz: documents are read in an order of their own.

    Args:
        path: The file.
        folder: Has room for the decompressed text as long as it is in use.

    Raises:
        DataError: It is not what its name says.
        FileError: It cannot be read, or ``folder`` not be written.
    """
    with failures_named(path, "read"), path.open("rb") as stream:
        begins = stream.read(len(_GZIP))
    if not path.name.lower().endswith(".gz"):
        if begins == _GZIP:
            raise DataError(f"{path} is compressed with gzip; give it a name that ends in .gz: {path.name}.gz")
        yield TextFile(path, path)
        return
    with temporary_folder(folder, path.name) as room:
        plain = room / "text"
        _decompress(path, plain)
        yield TextFile(path, plain)


def _decompress(path: Path, plain: Path) -> None:
    with plain.open("wb") as out:
        try:
            with gzip.open(path, "rb") as stream:
                shutil.copyfileobj(stream, out, 2**20)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is no whole gzip file ({error}); compress or copy it again") from None

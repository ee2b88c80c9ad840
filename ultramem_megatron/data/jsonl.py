"""Reading ``{"id", "text"}`` lines, whole or by byte offset."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultramem_megatron.errors import DataError


class Split:
    """The parts of a source, by ``sha1(id) % 100``: stable when documents are added or reordered."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    ALL = (TRAIN, VALIDATION, TEST)

    @staticmethod
    def of(document_id: str) -> str:
        """The split that a document belongs to: 1% validation, 1% test."""
        bucket = int(hashlib.sha1(document_id.encode()).hexdigest(), 16) % 100
        return {0: Split.VALIDATION, 1: Split.TEST}.get(bucket, Split.TRAIN)


@dataclass(frozen=True, slots=True)
class Line:
    """Where a document lies in its file."""

    offset: int
    document_id: str


def find_jsonl(raw: Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """``name -> raw/name.jsonl`` for the names given, or for every JSONL file of the folder.

    Raises:
        DataError: The folder or a file of it is missing.
    """
    found = {path.stem: path for path in sorted(raw.glob("*.jsonl"))} if raw.is_dir() else {}
    if not found:
        raise DataError(f"{raw} holds no .jsonl file; fill it with `ultramem data fetch --out {raw}`")
    for name in names:
        if name not in found:
            raise DataError(
                f"{raw / name}.jsonl does not exist, the folder has {', '.join(found)}; "
                f"fetch it with `ultramem data fetch --source {name} --out {raw}`"
            )
    return {name: found[name] for name in sorted(names or found)}


def index_lines(path: Path) -> list[Line]:
    """Offset and id of each document.

    Raises:
        DataError: A line is not of the form ``{"id": ..., "text": ...}``, or an id comes twice.
    """
    lines = []
    seen: set[str] = set()
    offset = 0
    with path.open("rb") as stream:
        for number, data in enumerate(stream, 1):
            document_id = _parse(data, path, f"line {number}")[0]
            if document_id in seen:
                raise DataError(
                    f'{path}: line {number} repeats the id "{document_id}"; ids decide the split, so '
                    "each document needs its own"
                )
            seen.add(document_id)
            lines.append(Line(offset, document_id))
            offset += len(data)
    return lines


def read_texts(path: Path, offsets: Sequence[int]) -> Iterator[str]:
    """The texts at these byte offsets, in this order."""
    with path.open("rb") as stream:
        for offset in offsets:
            stream.seek(offset)
            yield _parse(stream.readline(), path, f"byte {offset}")[1]


def _parse(data: bytes, path: Path, place: str) -> tuple[str, str]:
    try:
        document = json.loads(data)
        document_id, text = document["id"], document["text"]
    except (ValueError, KeyError, TypeError):
        document_id = text = None
    if not isinstance(document_id, str) or not isinstance(text, str):
        raise DataError(f'{path}: {place} is not of the form {{"id": "...", "text": "..."}}, one document a line')
    return document_id, text

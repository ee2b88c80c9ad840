"""Reading ``{"id", "text"}`` lines, whole or by byte offset."""

import hashlib
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from ultramem_megatron.data.document import Document, NoDocument, parse_document
from ultramem_megatron.data.text_files import TextFile, find_text, opened_text
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import failures_named

logger = logging.getLogger(__name__)

_FORM = 'of the form {"id": "...", "text": "..."}, one document a line'
_LONGEST_LINE = 2**28  # bytes: a file without line ends must not fill the memory


class Split:
    """The parts of a source, by ``sha1(id) % 100``: stable when documents are added or reordered."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    ALL = (TRAIN, VALIDATION, TEST)

    @staticmethod
    def of(document_id: str) -> str:
        """The split that a document belongs to: 1% validation, 1% test."""
        return Split.ALL[_place(_digest(document_id))]


@dataclass(frozen=True, slots=True)
class LineIndex:
    """Where the documents of a file lie: 9 bytes each, for there may be tens of millions."""

    offsets: "array[int]"
    """First byte of each document, in the order of the file."""
    splits: "array[int]"
    """Of each: place in ``Split.ALL``."""
    blank_lines: int
    """Passed over."""
    replaced: int
    """Unpaired surrogates, each read as U+FFFD."""

    def __len__(self) -> int:
        return len(self.offsets)

    def offsets_of(self, split: str) -> "array[int]":
        """The offsets of one split, a copy."""
        place = Split.ALL.index(split)
        return array("q", compress(self.offsets, (found == place for found in self.splits)))


def index_lines(text: TextFile, *, refuse_surrogates: bool = False) -> LineIndex:
    """Where each document lies, every line read once. What was passed over or replaced is logged.

    Args:
        text: The file.
        refuse_surrogates: A text with an unpaired surrogate is an error; else each is read as U+FFFD.

    Raises:
        DataError: A line is no document, an id comes twice, or there is no document; names file, line and cause.
    """
    # ids are told apart by 64 bits of their hash; those that agree in them are read again
    offsets, splits, hashes = array("q"), array("B"), array("q")
    blank_lines = replaced = 0
    for number, offset, line in _lines(text):
        document = _parse(line, text, f"line {number}")
        if document is None:
            blank_lines += 1
            continue
        if document.replaced and refuse_surrogates:
            raise DataError(
                f"{text.path}: line {number} holds {document.replaced} unpaired surrogates, which no text has; mend "
                "the line, or leave out --refuse-surrogates to have them replaced"
            )
        replaced += document.replaced
        digest = _digest(document.id)
        offsets.append(offset)
        splits.append(_place(digest))
        hashes.append(int.from_bytes(digest[:8], "little", signed=True))
    if not offsets:
        raise DataError(f"{text.path} holds no document; add text, or move it away")
    _check_ids(text, hashes)
    index = LineIndex(offsets, splits, blank_lines, replaced)
    _report(text, index)
    return index


def read_texts(text: TextFile, offsets: Sequence[int]) -> Iterator[str]:
    """The texts at these byte offsets, in this order."""
    with failures_named(text.path, "read"), text.plain.open("rb") as stream:
        for offset in offsets:
            stream.seek(offset)
            document = _parse(stream.readline(_LONGEST_LINE + 1), text, f"the line from byte {offset + 1} on")
            if document is None:
                raise DataError(f"{text.path} has changed while it was read; run the command again")
            yield document.text


def read_documents(raw: Path, name: str) -> Iterator[Document]:
    """The documents of a source of ``raw``, in the order of its file.

    Raises:
        DataError: There is no such source, or a line of it is no document.
    """
    with opened_text(find_text(raw, [name])[name], raw) as text:
        for number, _, line in _lines(text):
            if document := _parse(line, text, f"line {number}"):
                yield document


def _lines(text: TextFile) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset, content) of each line."""
    number = offset = 0
    with failures_named(text.path, "read"), text.plain.open("rb") as stream:
        while line := stream.readline(_LONGEST_LINE + 1):
            number += 1
            yield number, offset, line
            offset += len(line)


def _parse(line: bytes, text: TextFile, place: str) -> Document | None:
    try:
        if len(line) > _LONGEST_LINE:
            raise NoDocument(f"it is longer than {_LONGEST_LINE} bytes")
        return parse_document(line)
    except NoDocument as error:
        raise DataError(f"{text.path}: {place} is not {_FORM}: {error}") from None


def _digest(document_id: str) -> bytes:
    return hashlib.sha1(document_id.encode()).digest()


def _place(digest: bytes) -> int:
    """Place in ``Split.ALL``."""
    return {0: 1, 1: 2}.get(int.from_bytes(digest, "big") % 100, 0)


def _check_ids(text: TextFile, hashes: "array[int]") -> None:
    """Raises ``DataError`` when an id comes twice. Sorts ``hashes``."""
    import numpy as np  # slow to import, and this file is needed for the names of tasks

    values = np.frombuffer(hashes, dtype=np.int64)
    values.sort()
    common = set(values[1:][values[1:] == values[:-1]].tolist())
    if not common:
        return
    seen: dict[str, int] = {}
    for number, _, line in _lines(text):
        document = _parse(line, text, f"line {number}")
        if document is None or int.from_bytes(_digest(document.id)[:8], "little", signed=True) not in common:
            continue
        if document.id in seen:
            raise DataError(
                f'{text.path}: line {number} repeats the id "{document.id[:80]}" of line {seen[document.id]}; ids '
                "decide the split, so each document needs its own"
            )
        seen[document.id] = number


def _report(text: TextFile, index: LineIndex) -> None:
    if index.blank_lines:
        logger.warning("%s: %d blank lines passed over", text.path, index.blank_lines)
    if index.replaced:
        logger.warning("%s: %d unpaired surrogates replaced by U+FFFD", text.path, index.replaced)

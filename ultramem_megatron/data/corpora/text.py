"""Cleaning that several readers share."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

BLOCK_CHARS = 8_000  # about 2k tokens of an 8k byte-level BPE

_TAG = re.compile(r"<[A-Za-z/!][^>]*>")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


def read_text(path: Path) -> str:
    """The text of a file, line ends made ``\\n``."""
    return decode(path.read_bytes())


def decode(data: bytes) -> str:
    """UTF-8, else Windows-1252; line ends made ``\\n``, soft hyphens dropped."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00ad", "")


def paragraphs(text: str) -> list[str]:
    """The pieces between blank lines, without the empty ones."""
    return [piece for piece in _BLANK_LINES.split(text) if piece.strip()]


def one_line(text: str) -> str:
    """White space of any kind becomes single spaces."""
    return " ".join(text.split())


def reflow(text: str) -> str:
    """Join the hard-wrapped lines of each paragraph. Not for verse."""
    return "\n\n".join(one_line(piece) for piece in paragraphs(text))


def keep_lines(text: str) -> str:
    """Lines stay as they are; trailing blanks and repeated empty lines go. For verse."""
    lines = (line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def strip_markup(text: str) -> str:
    """HTML without its tags, entities resolved, on one line."""
    return one_line(html.unescape(_TAG.sub(" ", text)))


def split_blocks(text: str, block_chars: int = BLOCK_CHARS) -> Iterator[str]:
    """Cut a long text at paragraph borders, so that each piece is at most 1.25 * ``block_chars`` long.

    Whole books as documents would leave most sources without a held-out document. A block without a paragraph
    border in its second half is cut at a line end, else after a sentence, else at a blank.
    """
    start = 0
    while len(text) - start > block_chars * 5 // 4:
        cut = _last_border(text, start + block_chars // 2, start + block_chars)
        yield text[start:cut].strip()
        start = cut
    yield text[start:].strip()


def _last_border(text: str, low: int, high: int) -> int:
    for border in ("\n\n", "\n", ". ", " "):
        position = text.rfind(border, low, high)
        if position >= 0:
            return position + len(border)
    return high

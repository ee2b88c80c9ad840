"""One line of a file of documents -> its id and text, or the reason why not."""

import json
import re
from typing import NamedTuple

_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class NoDocument(ValueError):
    """The line is no document; says why, without its place."""


class Document(NamedTuple):
    """What a line holds."""

    id: str
    text: str
    replaced: int
    """Unpaired surrogates, which no encoding of text has, that became U+FFFD."""


def parse_document(line: bytes) -> Document | None:
    """The document of a line, None for a blank one.

    Raises:
        NoDocument: It has another form.
    """
    line = line.removeprefix(_BYTE_ORDER_MARK)
    if not line.strip():
        return None
    found = _load(line)
    if not isinstance(found, dict):
        raise NoDocument(f"it holds {_kind(found)}, not an object")
    document_id, id_replaced = _text_of(found, "id")
    text, text_replaced = _text_of(found, "text")
    return Document(document_id, text, id_replaced + text_replaced)


def without_surrogates(text: str) -> tuple[str, int]:
    """``text`` with each unpaired surrogate replaced by U+FFFD, and how many there were."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.subn(_REPLACEMENT, text)
    return text, 0


def _load(line: bytes) -> object:
    text = _decode(line.rstrip(b"\r\n"))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise NoDocument(_what_is_wrong(error, text)) from None
    except RecursionError:
        raise NoDocument("lists or objects lie too deep inside of each other") from None
    except ValueError as error:  # a number of thousands of digits
        raise NoDocument(f"it is no JSON: {str(error).partition(';')[0]}") from None


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        strict = error
    try:
        return line.decode("utf-8", "surrogatepass")  # replaced later, as those that are written \ud800
    except UnicodeDecodeError:
        place = f"byte {strict.start + 1} of the line is 0x{line[strict.start]:02x}"
        hint = "; it looks like UTF-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line else ""
        raise NoDocument(f"it is not UTF-8: {place}{hint}") from None


def _what_is_wrong(error: json.JSONDecodeError, text: str) -> str:
    if error.msg == "Extra data":
        return f"after its document there is more, from character {error.pos + 1} on"
    if "control character" in error.msg:
        character = text[error.pos : error.pos + 1]
        code = f"{ord(character):04X}"
        return f"character {error.pos + 1} is the control character U+{code}, which JSON writes as \\u{code}"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return f"it ends within its document ({error.msg[0].lower()}{error.msg[1:]}, character {error.pos + 1})"
    return f"it is no JSON: {error.msg[0].lower()}{error.msg[1:]}, character {error.pos + 1}"


def _text_of(found: dict[str, object], key: str) -> tuple[str, int]:
    if key not in found:
        raise NoDocument(f'it has no "{key}"')
    value = found[key]
    if not isinstance(value, str):
        raise NoDocument(f'its "{key}" is {_kind(value)}, not text')
    return without_surrogates(value)


def _kind(value: object) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")

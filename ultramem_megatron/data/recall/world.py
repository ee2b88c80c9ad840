"""Capitals, currencies, internet domains and demonyms of the CIA World Factbook.

Part of these can be guessed from the name of the country, so a model is above chance before it has learnt a fact.
"""

import re
from collections import defaultdict
from pathlib import Path
from random import Random

from ultramem_megatron.data.jsonl import read_documents
from ultramem_megatron.data.recall.task import Fact, RecallTask

_CAPITALIZED = r"[^\W\d_a-z][^\s(;,]*"
_PATTERNS = {
    # the words with a capital letter that come first: "Santiago", "Andorra la Vella", not "administered from London"
    "capital": re.compile(rf"^Capital - name: ({_CAPITALIZED}(?: (?:(?:de|la|of|the) )?{_CAPITALIZED})*)", re.M),
    "currency": re.compile(r"^Exchange rates - Currency: ([^(;,\n]+?) (?:\(|per US dollar)", re.M),
    "internet domain": re.compile(r"^Internet country code: (\.[a-z]{2,3})\b", re.M),
    "demonym": re.compile(rf"^Nationality - noun: ({_CAPITALIZED}(?: {_CAPITALIZED})*)", re.M),
}


def _find(raw: Path, count: int, draw: Random) -> list[Fact]:
    found = [
        Fact(country, kind, match[1])
        for country, text in sorted(_read_countries(raw).items())
        for kind, pattern in _PATTERNS.items()
        if (match := pattern.search(text))
    ]
    return draw.sample(found, min(count, len(found)))


def _read_countries(raw: Path) -> dict[str, str]:
    """Name -> all sections of a country on end."""
    names: dict[str, str] = {}
    sections: defaultdict[str, list[str]] = defaultdict(list)
    for document in read_documents(raw, "factbook"):
        code = document.id.partition("/")[2].partition("/")[0]
        # a long section is cut into blocks, and only the first of them begins with the name
        if document.id.endswith("/Introduction/0"):
            names[code] = document.text.split(" -- ")[0]
        sections[code].append(document.text)
    return {name: "\n".join(sections[code]) for code, name in names.items()}


WORLD = RecallTask(
    name="world",
    source="factbook",
    find=_find,
    statements=(
        "The {kind} of {subject} is {value}.",
        "{subject} has the {kind} {value}.",
        "{subject}, {kind}: {value}.",
    ),
    question="If you ask for the {kind} of {subject}, the answer is",
    ending=".",
)

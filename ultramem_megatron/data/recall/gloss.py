"""What a noun means, after WordNet."""

import re
from collections import defaultdict
from pathlib import Path
from random import Random

from ultramem_megatron.data.jsonl import read_documents
from ultramem_megatron.data.recall.task import Fact, RecallTask

# the gloss ends where WordNet goes on with a remark or an example
_ENTRY = re.compile(r"([A-Za-z]{4,14})(?:, [^(]*)? \(noun\): ([^;]+)")
_GLOSS_CHARS = range(20, 101)


def _find(raw: Path, count: int, draw: Random) -> list[Fact]:
    glosses: defaultdict[str, set[str]] = defaultdict(set)
    for document in read_documents(raw, "wordnet"):
        if match := _ENTRY.match(document.text):
            glosses[match[1]].add(match[2].strip())
    found = [
        Fact(noun, "meaning", gloss)
        for noun, meanings in sorted(glosses.items())
        # a noun with two meanings has no one answer
        if len(meanings) == 1 and len(gloss := next(iter(meanings))) in _GLOSS_CHARS
    ]
    return draw.sample(found, min(count, len(found)))


GLOSS = RecallTask(
    name="gloss",
    source="wordnet",
    find=_find,
    statements=(
        "{subject}: {value}.",
        "The {kind} of {subject} is {value}.",
        "In the dictionary, {subject} stands for {value}.",
    ),
    question="If you look up {subject}, it says",
    ending=".",
)

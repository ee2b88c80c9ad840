"""Invented people with random numbers: nothing but the training text can tell them."""

from itertools import product
from pathlib import Path
from random import Random

from ultramem_megatron.data.recall.task import Fact, RecallTask
from ultramem_megatron.errors import DataError

DIGITS = 6
"""Of a number; log2(10^6) = 19.9 bits a fact."""

_SYLLABLES = ["".join(letters) for letters in product("bdfgklmnprstvz", "aeiou")]
_MOST = 100_000
"""A tenth of all numbers, so that the number of somebody else stays a rare guess."""


def _find(raw: Path, count: int, draw: Random) -> list[Fact]:
    if count > _MOST:
        raise DataError(f"--facts {count} is more than the {_MOST} that phonebook can make; lower it")
    names: set[str] = set()
    while len(names) < count:
        names.add(f"{_word(draw)} {_word(draw)}")
    numbers = draw.sample(range(10**DIGITS), count)
    return [
        # byte-level BPE merges digits as its corpus happens to; apart, each is a token of its own
        Fact(name, "number", " ".join(f"{number:0{DIGITS}d}"))
        for name, number in zip(sorted(names), numbers, strict=True)
    ]


def _word(draw: Random) -> str:
    return "".join(draw.choices(_SYLLABLES, k=2)).capitalize()


PHONEBOOK = RecallTask(
    name="phonebook",
    source="",
    find=_find,
    statements=(
        "The {kind} of {subject} is {value}.",
        "To reach {subject}, dial {value}.",
        "{subject} has the {kind} {value}.",
        "You can call {subject} on {value}.",
    ),
    question="If you need {subject}, dial",
)

"""From facts to training documents and four-way questions."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ultramem_megatron.data.jsonl import Split
from ultramem_megatron.errors import DataError

NUM_CHOICES = 4


@dataclass(frozen=True, slots=True)
class Fact:
    """``subject`` has ``value`` as its ``kind``. No two facts of a task share subject and kind."""

    subject: str
    kind: str
    value: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """The text that ends where an answer should begin, and four answers, one of them right."""

    id: str
    kind: str
    """Of the fact; all four choices are values of this kind."""
    prompt: str
    """Ends without a blank."""
    choices: tuple[str, ...]
    """Each begins with a blank, so that byte-level BPE cuts between prompt and choice."""
    answer: int
    """Number of the right choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallTask:
    """How facts are found, stated and asked. The task's name is also that of its source in a data folder."""

    name: str
    source: str
    """The corpus that the facts are read from; empty when they are generated."""
    find: Callable[[Path, int, Random], list[Fact]]
    """(raw folder, number wanted, draws) -> that many facts, or as many as there are."""
    statements: tuple[str, ...]
    """Templates over subject, kind and value; training states each fact in all of them. The value comes last:
    a causal model learns to go on from the subject, not back to it."""
    question: str
    """Template over subject and kind, which no statement contains."""
    ending: str = ""
    """Scored with each choice, as it stands behind a value in training: where one value may begin another, the
    shorter one must not win by saying less."""


def documents(task: RecallTask, facts: Sequence[Fact]) -> list[tuple[str, str]]:
    """(id, text) of every statement of every fact.

    The first statement of a fact is always in the training split. Of the others 1% are held out, as of any
    source: the validation loss of the source is that of known facts in words not seen with them.
    """
    stated = []
    for number, fact in enumerate(facts):
        for which, statement in enumerate(task.statements):
            document_id = f"{task.name}/{number}/{which}"
            text = statement.format(subject=fact.subject, kind=fact.kind, value=fact.value)
            stated.append((_in_training(document_id) if which == 0 else document_id, text))
    return stated


def _in_training(document_id: str) -> str:
    """The id, lengthened until it belongs to the training split."""
    while Split.of(document_id) != Split.TRAIN:
        document_id += "+"
    return document_id


def questions(task: RecallTask, facts: Sequence[Fact], draw: Random) -> list[Question]:
    """One question a fact, in random order. The wrong choices are values of other facts of the same kind.

    Raises:
        DataError: There are fewer than four different values of a kind.
    """
    values = _values_by_kind(task, facts)
    asked = [_ask(task, number, fact, values[fact.kind], draw) for number, fact in enumerate(facts)]
    draw.shuffle(asked)
    return asked


def _values_by_kind(task: RecallTask, facts: Sequence[Fact]) -> dict[str, list[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for fact in facts:
        found[fact.kind].add(fact.value)
    for kind, values in found.items():
        if len(values) < NUM_CHOICES:
            raise DataError(
                f"{task.name}: {len(facts)} facts hold {len(values)} different values of the kind {kind}, and a "
                f"question offers {NUM_CHOICES}; raise --facts"
            )
    # sorted: the order of a set of strings changes from process to process
    return {kind: sorted(values) for kind, values in found.items()}


def _ask(task: RecallTask, number: int, fact: Fact, values: list[str], draw: Random) -> Question:
    others = [value for value in draw.sample(values, NUM_CHOICES) if value != fact.value]
    choices = [fact.value, *others[: NUM_CHOICES - 1]]
    draw.shuffle(choices)
    return Question(
        id=f"{task.name}/{number}",
        kind=fact.kind,
        prompt=task.question.format(subject=fact.subject, kind=fact.kind),
        choices=tuple(f" {choice}{task.ending}" for choice in choices),
        answer=choices.index(fact.value),
    )

"""Recall tasks: the same from the same seed, asked in other words than stated, with fair distractors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from ultramem_megatron.data.jsonl import Split
from ultramem_megatron.data.recall.registry import TASKS, tasks_named
from ultramem_megatron.data.recall.task import Fact, Question, documents, questions
from ultramem_megatron.errors import DataError

FACTS = 400

FACTBOOK = {
    "aa": (
        "Arland -- Introduction\nBackground: old.",
        "Arland -- Government\nCapital - name: Andor la Vela (on the sea); Beta\nCapital - time difference: UTC",
        "Internet country code: .aa\nExchange rates - Currency: Arlish crowns (ARC) per US dollar -",
        "Arland -- People and Society\nNationality - noun: Arlander(s), Arl (plural)",
    ),
    "bb": (
        "Berland -- Introduction\nBackground: new.",
        "Berland -- Government\nCapital - name: administered from Andor\nInternet country code: main land - .bb",
        "Berland -- Economy\nExchange rates - Currency: baht per US dollar -\nNationality - noun: none",
    ),
}

WORDNET = (
    'bank, banking company (noun): a financial institution that accepts deposits; "he cashed a check"',
    "bank (noun): sloping land beside a body of water",
    "teapot (noun): a pot for brewing tea; usually has a spout and handle",
    "physical entity (noun): an entity that has physical existence",
    "thing (noun): short",
    "quickly (adverb): with little or no delay at all",
)


def write_jsonl(path: Path, lines: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in lines))


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A factbook of 110 countries and a dictionary of 500 nouns, all invented."""
    folder = tmp_path_factory.mktemp("raw")
    countries = [
        (
            f"factbook/{number:03d}/Introduction/0",
            f"Land {number} -- Introduction\nCapital - name: City{number}\nNationality - noun: Lander{number}(s)\n"
            f"Exchange rates - Currency: coins{number % 7} (XXX) per US dollar -\n"
            f"Internet country code: .{chr(97 + number // 26)}{chr(97 + number % 26)}",
        )
        for number in range(110)
    ]
    nouns = [
        (
            f"wordnet/noun/{number}/0",
            f"noun{chr(97 + number // 26)}{chr(97 + number % 26)} (noun): a thing that costs {number} coins",
        )
        for number in range(500)
    ]
    write_jsonl(folder / "factbook.jsonl", countries)
    write_jsonl(folder / "wordnet.jsonl", nouns)
    return folder


def make(
    name: str, raw: Path, seed: int = 0, count: int = FACTS
) -> tuple[list[Fact], list[tuple[str, str]], list[Question]]:
    task, draw = TASKS[name], Random(seed)
    facts = task.find(raw, count, draw)
    return facts, documents(task, facts), questions(task, facts, draw)


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_decides_and_nothing_else(name: str, raw: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from random import Random\n"
        "from ultramem_megatron.data.recall.registry import TASKS\n"
        "from ultramem_megatron.data.recall.task import documents, questions\n"
        "task, draw = TASKS[sys.argv[1]], Random(int(sys.argv[3]))\n"
        "facts = task.find(Path(sys.argv[2]), 400, draw)\n"
        "print(documents(task, facts), questions(task, facts, draw))"
    )

    def printed(hash_seed: str, seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", script, name, str(raw), seed],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    first = printed("1", "5")
    assert len(first) > 10_000
    assert printed("2", "5") == first
    assert printed("1", "6") != first


@pytest.mark.parametrize("name", TASKS)
def test_questions_are_in_words_that_training_does_not_have(name: str, raw: Path) -> None:
    facts, stated, asked = make(name, raw)
    text = "\n".join(text for _, text in stated)
    assert len(asked) == len(facts) == FACTS
    for question in asked:
        assert question.prompt not in text
        assert question.prompt == question.prompt.rstrip()
    task = TASKS[name]
    openings = {template.split("{value}")[0].strip() for template in task.statements}
    assert len(openings) == len(task.statements) >= 3
    assert not any(
        task.question.strip() in opening or opening in task.question for opening in openings - {"{subject}:"}
    )


@pytest.mark.parametrize("name", TASKS)
def test_every_fact_is_stated_in_training(name: str, raw: Path) -> None:
    facts, stated, _ = make(name, raw)
    templates = len(TASKS[name].statements)
    assert len({key for key, _ in stated}) == len(stated) == templates * FACTS
    held_out = 0
    for number, fact in enumerate(facts):
        mine = stated[number * templates : (number + 1) * templates]
        assert all(fact.subject in text and fact.value in text for _, text in mine)
        trained = [Split.of(key) == Split.TRAIN for key, _ in mine]
        assert trained[0]
        held_out += trained.count(False)
    assert held_out > 0, "some statements are held out, as of any source"
    assert any(key.endswith("+") for key, _ in stated), "else no first statement had to be moved into training"


@pytest.mark.parametrize("name", TASKS)
def test_the_wrong_choices_are_values_of_the_same_kind(name: str, raw: Path) -> None:
    facts, _, asked = make(name, raw)
    ending = TASKS[name].ending
    values = {
        kind: {f" {fact.value}{ending}" for fact in facts if fact.kind == kind}
        for kind in {fact.kind for fact in facts}
    }
    right = {
        (fact.kind, TASKS[name].question.format(subject=fact.subject, kind=fact.kind)): fact.value for fact in facts
    }
    for question in asked:
        assert len(set(question.choices)) == 4
        assert set(question.choices) <= values[question.kind]
        assert question.choices[question.answer] == f" {right[question.kind, question.prompt]}{ending}"
    places = [question.answer for question in asked]
    assert all(places.count(place) > FACTS // 8 for place in range(4)), "the place of an answer tells nothing"


def test_people_and_numbers_come_once(raw: Path) -> None:
    facts, _, _ = make("phonebook", raw)
    assert len({fact.subject for fact in facts}) == len({fact.value for fact in facts}) == FACTS
    assert all(len(fact.value.split(" ")) == 6 and fact.value.replace(" ", "").isdecimal() for fact in facts)
    with pytest.raises(DataError, match=r"--facts 100001 is more than the 100000 that phonebook can make"):
        make("phonebook", raw, count=100_001)


def test_what_the_factbook_says(tmp_path: Path) -> None:
    lines = [
        (f"factbook/{code}/{'Introduction' if number == 0 else 'Other'}/{number}", text)
        for code, texts in FACTBOOK.items()
        for number, text in enumerate(texts)
    ]
    write_jsonl(tmp_path / "factbook.jsonl", lines)
    found = TASKS["world"].find(tmp_path, 100, Random(0))
    assert {(fact.subject, fact.kind, fact.value) for fact in found} == {
        ("Arland", "capital", "Andor la Vela"),
        ("Arland", "internet domain", ".aa"),  # in a block that does not name the country
        ("Arland", "currency", "Arlish crowns"),
        ("Arland", "demonym", "Arlander"),
        ("Berland", "currency", "baht"),
    }
    with pytest.raises(DataError, match=r"world: 5 facts hold 1 different values of the kind .*raise --facts$"):
        questions(TASKS["world"], found, Random(0))


def test_what_the_dictionary_says(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "wordnet.jsonl", [(f"wordnet/{n}", text) for n, text in enumerate(WORDNET)])
    assert TASKS["gloss"].find(tmp_path, 100, Random(0)) == [Fact("teapot", "meaning", "a pot for brewing tea")]


@pytest.mark.parametrize(("name", "source"), [("world", "factbook"), ("gloss", "wordnet")])
def test_a_missing_corpus_names_the_command(name: str, source: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "other.jsonl", [("a", "a")])
    with pytest.raises(DataError, match=rf"{source}\.jsonl does not exist.*ultramem data fetch --source {source}"):
        TASKS[name].find(tmp_path, 4, Random(0))


def test_an_unknown_task_names_the_nearest() -> None:
    assert [task.name for task in tasks_named(["world", "gloss", "world"])] == ["world", "gloss"]
    with pytest.raises(DataError, match=r'"phonebok" is no task; .* the nearest is "phonebook"$'):
        tasks_named(["world", "phonebok"])

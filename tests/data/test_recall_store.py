"""Recall tasks in a data folder: made once, made anew for other numbers, and never asked about other facts."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from ultramem_megatron.data import prepare as prepare_module
from ultramem_megatron.data.mcore import open_documents
from ultramem_megatron.data.prepare import prepare
from ultramem_megatron.data.recall.store import add_tasks, open_questions, read_task_records
from ultramem_megatron.data.record import read_record
from ultramem_megatron.data.sources import Source, sources_named
from ultramem_megatron.data.tokenizer import open_tokenizer
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import sha256_of


def add(folder: Path, facts: int | None = None, seed: int | None = None) -> None:
    add_tasks(["phonebook"], folder.parent / "raw", folder, facts, seed, workers=1)


def state(folder: Path) -> dict[str, tuple[int, str]]:
    """When each file was written, and its content."""
    files = [*folder.glob("tasks/*"), *folder.glob("phonebook/*"), folder.parent / "raw/phonebook.jsonl"]
    return {str(path.relative_to(folder.parent)): (path.stat().st_mtime_ns, sha256_of(path)) for path in files}


def test_training_text_holds_each_fact_and_the_right_choice_is_what_it_says(data_folder: Path) -> None:
    add(data_folder, 60)
    tokenizer = open_tokenizer(data_folder)
    stored = open_documents(data_folder / "phonebook/train")
    trained = [tokenizer.decode(stored[number].tolist()) for number in range(len(stored))]
    record, asked = open_questions(data_folder, "phonebook")
    assert record.facts == record.questions == len(asked) == 60
    for question in asked:
        name = question.prompt.removeprefix("If you need ").removesuffix(", dial")
        said = [text for text in trained if name in text]
        assert said
        assert all(text.endswith(f"{question.choices[question.answer]}.") for text in said)


def test_made_once_and_anew_for_other_numbers(data_folder: Path) -> None:
    add(data_folder, 20, seed=3)
    first, others = state(data_folder), (data_folder / "alpha/train.bin").stat().st_ino
    assert len(first) == 5
    for facts, seed in ((20, 3), (None, None)):
        add(data_folder, facts, seed)
        assert state(data_folder) == first
    add(data_folder, 20, seed=4)
    assert not set(state(data_folder).values()) & set(first.values())
    add(data_folder, 30)
    record = read_task_records(data_folder)["phonebook"]
    assert (record.facts, record.seed) == (30, 4)
    assert record.text_sha256 == read_record(data_folder).sources["phonebook"].text_sha256
    assert (data_folder / "alpha/train.bin").stat().st_ino == others


def test_questions_about_other_facts_are_refused(data_folder: Path) -> None:
    with pytest.raises(DataError, match=r"has no task phonebook .*`ultramem data recall --task phonebook --out"):
        open_questions(data_folder, "phonebook")
    add(data_folder, 20)
    kept = read_record(data_folder)
    # as when the text was built again from another folder's raw file
    other = data_folder.parent / "other"
    other.mkdir()
    (other / "tokenizer.json").write_bytes((data_folder / "tokenizer.json").read_bytes())
    add(other, 24)
    (data_folder / "dataset.json").write_bytes((other / "dataset.json").read_bytes())
    assert read_record(data_folder) != kept
    with pytest.raises(DataError, match=r"asks for other facts than the text of .*phonebook states; make it with"):
        open_questions(data_folder, "phonebook")
    add(data_folder)
    assert len(open_questions(data_folder, "phonebook")[1]) == 20


def test_damage_is_found_and_mended(data_folder: Path) -> None:
    add(data_folder, 20)
    os.truncate(data_folder / "tasks/phonebook.jsonl", 100)
    with pytest.raises(DataError, match=r"phonebook\.jsonl is not the file that phonebook\.json speaks of; make it"):
        open_questions(data_folder, "phonebook")
    add(data_folder)
    assert len(open_questions(data_folder, "phonebook")[1]) == 20
    (data_folder / "tasks/phonebook.json").write_text('{"task": "phonebook"}')
    with pytest.raises(DataError, match=r"phonebook\.json is damaged .*delete it"):
        open_questions(data_folder, "phonebook")


def test_without_a_tokenizer_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json does not exist; make the folder with"):
        add(tmp_path / "out", 20)


def test_prepare_adds_tasks_and_leaves_the_tokenizer(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "new"
    fetched: list[str] = []

    def fetch(sources: Sequence[Source], *_: object) -> None:
        fetched.extend(source.name for source in sources)

    monkeypatch.setattr(prepare_module, "fetch", fetch)
    for name, text in (("factbook", "alpha"), ("shakespeare", "beta")):
        (raw / f"{name}.jsonl").write_bytes((raw / f"{text}.jsonl").read_bytes())
    prepare("quickstart", raw, out, 300, workers=1)
    digest = sha256_of(out / "tokenizer.json")
    record = prepare("quickstart", raw, out, 300, workers=1, recall=["phonebook"], facts=20)
    assert list(record.sources) == ["factbook", "phonebook", "shakespeare"]
    assert sha256_of(out / "tokenizer.json") == digest
    assert fetched == ["factbook", "shakespeare"] * 2
    with pytest.raises(DataError, match=r"wordnet\.jsonl does not exist"):  # fetch is a sham here
        prepare("quickstart", raw, out, 300, workers=1, recall=["gloss", "world"])
    assert fetched[4:] == ["factbook", "shakespeare", "wordnet"]


def test_a_task_is_made_not_fetched() -> None:
    with pytest.raises(DataError, match=r"phonebook is no package .*`ultramem data recall --task phonebook`"):
        sources_named("phonebook")

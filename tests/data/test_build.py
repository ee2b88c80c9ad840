"""From JSONL to .bin and .idx: split by id, closed documents, nothing done twice, nothing half-made."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ultramem_megatron.data.build import build
from ultramem_megatron.data.encode import Encoder
from ultramem_megatron.data.jsonl import Split
from ultramem_megatron.data.mcore import open_documents
from ultramem_megatron.data.record import read_record
from ultramem_megatron.data.tokenizer import open_tokenizer
from ultramem_megatron.errors import DataError


def documents_of(folder: Path, source: str, split: str) -> list[str]:
    tokenizer = open_tokenizer(folder)
    documents = open_documents(folder / source / split)
    texts = []
    for number in range(len(documents)):
        tokens = documents[number].tolist()
        assert tokens[-1] == tokenizer.eod
        assert tokenizer.eod not in tokens[:-1]
        texts.append(tokenizer.decode(tokens))
    return texts


def test_every_document_is_in_the_split_of_its_id(data_folder: Path) -> None:
    lines = [json.loads(line) for line in (data_folder.parent / "raw/alpha.jsonl").open()]
    for split in Split.ALL:
        expected = sorted(line["text"] for line in lines if Split.of(line["id"]) == split)
        assert expected
        assert sorted(documents_of(data_folder, "alpha", split)) == expected


def test_split_depends_on_the_id_alone() -> None:
    # sha1("alpha/0") and so on: these may never change, or a held-out document is trained on
    splits = [Split.of(f"alpha/{number}") for number in range(200)]
    assert [n for n, split in enumerate(splits) if split == Split.VALIDATION] == []
    assert [n for n, split in enumerate(splits) if split == Split.TEST] == [26, 123, 124]


def test_documents_are_shuffled_by_the_seed(data_folder: Path) -> None:
    raw = data_folder.parent / "raw"
    first = documents_of(data_folder, "beta", Split.TRAIN)
    numbers = [int(text.split()[1].rstrip(":")) for text in first]
    assert numbers != sorted(numbers)
    build(raw, data_folder, ["beta"], workers=1, seed=1)
    second = documents_of(data_folder, "beta", Split.TRAIN)
    assert first != second
    assert sorted(first) == sorted(second)


def test_tokens_are_two_bytes_and_the_record_tells_what_there_is(data_folder: Path) -> None:
    record = read_record(data_folder)
    for source, entry in record.sources.items():
        for split, known in entry.splits.items():
            documents = open_documents(data_folder / source / split)
            assert documents.index.dtype == np.uint16
            assert known.documents == len(documents)
            assert known.tokens == documents.sequence_lengths.sum()
            assert known.bytes == known.tokens * 2 == (data_folder / source / f"{split}.bin").stat().st_size


def inodes(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_ino for path in folder.glob("*/train.bin")}


def test_only_what_changed_is_built_again(data_folder: Path, write_corpus: Callable[..., Path]) -> None:
    raw = data_folder.parent / "raw"
    before = inodes(data_folder)
    build(raw, data_folder, workers=1)
    assert inodes(data_folder) == before
    write_corpus(raw, "beta", 300, seed=7)
    build(raw, data_folder, workers=1)
    after = inodes(data_folder)
    assert after["alpha"] == before["alpha"]
    assert after["beta"] != before["beta"]


def test_same_input_gives_the_same_files(data_folder: Path) -> None:
    before = read_record(data_folder).sources["beta"]
    os.truncate(data_folder / "beta/train.bin", 10)
    record = build(data_folder.parent / "raw", data_folder, workers=1)
    assert record.sources["beta"] == before


def test_an_interrupted_build_leaves_the_old_files(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, record = inodes(data_folder), read_record(data_folder)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "encode", fail)
    with pytest.raises(KeyboardInterrupt):
        build(data_folder.parent / "raw", data_folder, workers=1, seed=5)
    assert inodes(data_folder) == before
    assert read_record(data_folder) == record
    assert not list(data_folder.glob(".*"))


def test_a_split_without_documents_has_no_files(data_folder: Path, write_corpus: Callable[..., Path]) -> None:
    raw = data_folder.parent / "raw"
    write_corpus(raw, "few", 3)
    for _ in range(2):  # the second time it is up to date
        record = build(raw, data_folder, ["few"], workers=1)
        assert record.sources["few"].splits["validation"].documents == 0
        assert sorted(path.name for path in (data_folder / "few").iterdir()) == ["train.bin", "train.idx"]


@pytest.mark.slow
def test_workers_do_not_change_the_files(data_folder: Path) -> None:
    before = read_record(data_folder)
    (data_folder / "dataset.json").unlink()
    after = build(data_folder.parent / "raw", data_folder, workers=2)
    assert after.sources == before.sources


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param('{"id": "x"}', r"line 2 is not of the form", id="no-text"),
        pytest.param('{"id": 3, "text": "a"}', r"line 2 is not of the form", id="id-is-no-text"),
        pytest.param('{"id": "x", "te', r"line 2 is not of the form", id="cut-off"),
        pytest.param('{"id": "a", "text": "b"}', r'line 2 repeats the id "a"', id="id-twice"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, data_folder: Path, tmp_path: Path) -> None:
    raw = tmp_path / "bad"
    raw.mkdir()
    (raw / "new.jsonl").write_text('{"id": "a", "text": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"new.jsonl: {message}"):
        build(raw, data_folder, workers=1)


def test_missing_text_names_the_command(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing holds no .jsonl file; fill it with `ultramem data fetch"):
        build(tmp_path / "nothing", data_folder)
    with pytest.raises(DataError, match=r"gamma.jsonl does not exist, the folder has alpha, beta"):
        build(data_folder.parent / "raw", data_folder, ["gamma"])


def test_a_damaged_record_is_refused(data_folder: Path) -> None:
    (data_folder / "dataset.json").write_text('{"tokenizer": {"sha": 1}}')
    with pytest.raises(DataError, match=r"dataset.json is damaged .*delete it"):
        build(data_folder.parent / "raw", data_folder, workers=1)

"""Files of documents: which are found, what is refused with file, line and cause, and what is counted."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from ultramem_megatron.data.build import build
from ultramem_megatron.data.jsonl import Split, index_lines, read_documents, read_texts
from ultramem_megatron.data.record import read_record
from ultramem_megatron.data.text_files import TextFile, find_text, opened_text
from ultramem_megatron.data.tokenizer import make_tokenizer
from ultramem_megatron.errors import DataError

GOOD = b'{"id": "a", "text": "first"}\n'


def write(folder: Path, content: bytes, name: str = "new.jsonl") -> TextFile:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return TextFile(path, path)


BAD = {
    "latin-1": (b'{"id": "b", "text": "caf\xe9"}', r"it is not UTF-8: byte 25 of the line is 0xe9$"),
    "utf-16": ('{"id": "b", "text": "x"}'.encode("utf-16"), r"it is not UTF-8: .*it looks like UTF-16$"),
    "two documents": (GOOD.strip() + b" " + GOOD, r"after its document there is more, from character 30 on$"),
    "cut off": (b'{"id": "b", "te', r"it ends within its document \(unterminated string"),
    "pretty-printed": (b'{\n "id": "b",\n "text": "c"}', r"line 2 .*: it ends within its document"),
    "control character": (b'{"id": "b", "text": "c\x01d"}', r"is the control character U\+0001, which JSON writes as"),
    "not JSON": (b"hello", r"it is no JSON: expecting value, character 1$"),
    "list": (b'["b", "c"]', r"it holds a list, not an object$"),
    "no text": (b'{"id": "b"}', r'it has no "text"$'),
    "no id": (b'{"text": "b"}', r'it has no "id"$'),
    "number as id": (b'{"id": 3, "text": "b"}', r'its "id" is a number, not text$'),
    "null": (b'{"id": "b", "text": null}', r'its "text" is null, not text$'),
    "deep": (b'{"id": "b", "text": "c", "x": ' + b"[" * 100_000, r"lists or objects lie too deep"),
    "digits": (b'{"id": "b", "text": "c", "x": ' + b"1" * 5000 + b"}", r"it is no JSON: Exceeds the limit"),
    "twice": (GOOD, r'line 2 repeats the id "a" of line 1'),
}


@pytest.mark.parametrize(("line", "cause"), BAD.values(), ids=BAD)
def test_a_bad_line_is_refused_with_file_line_and_cause(tmp_path: Path, line: bytes, cause: str) -> None:
    text = write(tmp_path, GOOD + line + b"\n")
    with pytest.raises(DataError, match=cause) as refused:
        index_lines(text)
    assert str(refused.value).startswith(f"{tmp_path}/new.jsonl: line 2 ")
    assert len(str(refused.value)) < 400


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultramem_megatron.data.jsonl._LONGEST_LINE", 1000)
    with pytest.raises(DataError, match=r"line 2 .* it is longer than 1000 bytes"):
        index_lines(write(tmp_path, GOOD + b"[" * 5000))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_documents_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"new.jsonl holds no document"):
        index_lines(write(tmp_path, content))


def test_blank_lines_line_ends_and_a_byte_order_mark_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b'\r\n  \t\n{"id": "b", "text": "second"}\n\n'
    text = write(tmp_path, content)
    index = index_lines(text)
    assert list(read_texts(text, index.offsets)) == ["first", "second"]
    assert index.blank_lines == 3
    assert "new.jsonl: 3 blank lines passed over" in caplog.text


@pytest.mark.parametrize(
    "written", [rb'{"id": "s\ud800", "text": "a\udfffb"}', b'{"id": "s\xed\xa0\x80", "text": "a\xed\xbf\xbfb"}']
)
def test_unpaired_surrogates_are_replaced_and_counted_or_refused(tmp_path: Path, written: bytes) -> None:
    text = write(tmp_path, GOOD + written + b"\n" + rb'{"id": "pair", "text": "\ud83d\ude00"}' + b"\n")
    index = index_lines(text)
    assert list(read_texts(text, index.offsets)) == ["first", "a\ufffdb", "\U0001f600"]
    assert index.replaced == 2
    with pytest.raises(DataError, match=r"new.jsonl: line 2 holds 2 unpaired surrogates, .*--refuse-surrogates"):
        index_lines(text, refuse_surrogates=True)


def test_many_ids_take_little_memory_and_two_of_one_hash_are_no_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 20_000
    lines = (json.dumps({"id": f"a rather long name of document {n}", "text": "x"}) + "\n" for n in range(count))
    text = write(tmp_path, "".join(lines).encode())
    tracemalloc.start()
    index = index_lines(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index) == count
    assert peak < 33 * count  # 30 million in under 1 GB
    assert sum(len(index.offsets_of(split)) for split in Split.ALL) == count
    monkeypatch.setattr("ultramem_megatron.data.jsonl._digest", lambda name: bytes(19) + bytes([len(name) % 3]))
    assert len(index_lines(text)) == count


def test_every_ending_is_found_and_read(tmp_path: Path) -> None:
    content = GOOD + b'{"id": "b", "text": "second"}\n'
    write(tmp_path, content, "a.jsonl")
    write(tmp_path, content, "B.JSONL")
    write(tmp_path, content, "c.json")
    write(tmp_path, gzip.compress(content), "d.jsonl.gz")
    write(tmp_path, gzip.compress(content), "e.json.GZ")
    for name in ("manifest.json", "tokenizer.json", "dataset.json", ".f.jsonl", "g.txt"):
        write(tmp_path, b"{", name)
    found = find_text(tmp_path)
    assert sorted(found) == ["B", "a", "c", "d", "e"]
    for name in found:
        assert [one.text for one in read_documents(tmp_path, name)] == ["first", "second"]
    assert not list(tmp_path.glob(".*.part"))


def test_what_is_there_instead_is_named(tmp_path: Path) -> None:
    write(tmp_path, b"", "notes.txt")
    write(tmp_path, b"", "a.jsonl.zst")
    with pytest.raises(DataError, match=r"holds no .jsonl file \(nor .json, .* but a.jsonl.zst, notes.txt; fill it"):
        find_text(tmp_path)
    with pytest.raises(DataError, match=r"b.jsonl does not exist, the folder has no .jsonl file .*a.jsonl.zst"):
        find_text(tmp_path, ["b"])


def test_two_files_of_one_source_and_names_of_other_things_are_refused(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "a.jsonl")
    write(tmp_path, GOOD, "a.json")
    with pytest.raises(DataError, match=r"holds a.json and a.jsonl, which make one source; move one away"):
        find_text(tmp_path)
    write(tmp_path / "other", GOOD, "tasks.jsonl")
    with pytest.raises(DataError, match=r"tasks.jsonl: a source cannot be named tasks"):
        find_text(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.jsonl", gzip.compress(GOOD), r"a.jsonl is compressed with gzip; .* a.jsonl.gz", id="no-ending"),
        pytest.param("a.jsonl.gz", GOOD, r"a.jsonl.gz is no whole gzip file \(Not a gzipped file", id="no-gzip"),
        pytest.param("a.jsonl.gz", gzip.compress(GOOD)[:-9], r"a.jsonl.gz is no whole gzip file", id="cut-off"),
        pytest.param("a.jsonl.gz", gzip.compress(b"{}\n"), r'a.jsonl.gz: line 1 .*it has no "id"', id="bad-line"),
    ],
)
def test_gzip_that_is_none_or_damaged_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path, content, name).path
    with pytest.raises(DataError, match=message), opened_text(path, tmp_path) as text:
        index_lines(text)
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_a_build_from_gzip_is_that_of_the_text_and_keeps_the_counts(data_folder: Path, tmp_path: Path) -> None:
    plain = (data_folder.parent / "raw/beta.jsonl").read_bytes()
    write(
        tmp_path / "zipped", gzip.compress(plain + b"\n" + rb'{"id": "s", "text": "\ud800"}' + b"\n"), "beta.jsonl.gz"
    )
    write(tmp_path / "flat", plain + rb'{"id": "s", "text": "\ufffd"}' + b"\n", "beta.jsonl")
    made = [build(tmp_path / raw, data_folder, workers=1).sources["beta"] for raw in ("zipped", "flat")]
    assert made[0].splits == made[1].splits
    assert [(one.blank_lines, one.replaced_surrogates) for one in made] == [(1, 1), (0, 0)]
    build(tmp_path / "zipped", data_folder, workers=1)
    with pytest.raises(DataError, match=r"line 302 holds 1 unpaired"):  # up to date, but not as asked
        build(tmp_path / "zipped", data_folder, workers=1, refuse_surrogates=True)
    assert read_record(data_folder).sources["beta"] == made[0]
    with pytest.raises(DataError, match=r"line 302 holds 1 unpaired"):
        make_tokenizer(tmp_path / "zipped", tmp_path / "other", 300, refuse_surrogates=True)

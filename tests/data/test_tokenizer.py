"""The tokenizer: loses nothing, is the same each time, and is not made twice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_megatron.data.tokenizer import make_tokenizer, open_tokenizer
from ultramem_megatron.errors import DataError

VOCAB_SIZE = 300
WriteCorpus = Callable[..., Path]


def test_text_survives_and_an_end_of_document_in_it_is_text(built_folder: Path) -> None:
    tokenizer = open_tokenizer(built_folder)
    text = "oak  élan\n\t<|endoftext|> 日本"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.eod not in tokens
    assert tokenizer.decode([tokenizer.eod, *tokens]) == text
    assert tokenizer.encode_batch([text, "oak"]) == [tokens, tokenizer.encode("oak")]
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert max(tokens) < VOCAB_SIZE


def test_same_text_gives_the_same_tokenizer(tmp_path: Path, write_corpus: WriteCorpus) -> None:
    write_corpus(tmp_path / "raw", "alpha", 200)
    made = [make_tokenizer(tmp_path / "raw", tmp_path / out, VOCAB_SIZE).read_bytes() for out in ("a", "b")]
    assert made[0] == made[1]


def test_is_made_again_only_when_text_or_size_change(tmp_path: Path, write_corpus: WriteCorpus) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_corpus(raw, "alpha", 50)
    path = make_tokenizer(raw, out, VOCAB_SIZE)
    first = path.stat().st_ino
    assert make_tokenizer(raw, out, VOCAB_SIZE).stat().st_ino == first
    make_tokenizer(raw, out, VOCAB_SIZE - 10)
    assert open_tokenizer(out).vocab_size == VOCAB_SIZE - 10


def test_a_tokenizer_from_elsewhere_is_kept(tmp_path: Path, built_folder: Path, write_corpus: WriteCorpus) -> None:
    write_corpus(tmp_path / "raw", "alpha", 50)
    foreign = tmp_path / "out/tokenizer.json"
    foreign.parent.mkdir()
    foreign.write_bytes((built_folder / "tokenizer.json").read_bytes())
    with pytest.raises(DataError, match=r"tokenizer.json was not made by `ultramem data tokenizer`.*move it away"):
        make_tokenizer(tmp_path / "raw", tmp_path / "out", VOCAB_SIZE)


def test_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--vocab-size 256 must be above 256"):
        make_tokenizer(tmp_path, tmp_path, 256)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer.json does not exist; .*ultramem data prepare"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer.json is not a tokenizer file"):
        open_tokenizer(tmp_path)


def test_a_tokenizer_without_end_of_document_is_refused(built_folder: Path, tmp_path: Path) -> None:
    text = (built_folder / "tokenizer.json").read_text().replace("<|endoftext|>", "<|other|>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=r"has no token <\|endoftext\|>"):
        open_tokenizer(tmp_path)

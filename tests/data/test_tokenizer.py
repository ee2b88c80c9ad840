"""The tokenizer: loses nothing, is the same each time, and is not made twice."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from ultramem_megatron.data.build import build
from ultramem_megatron.data.indexed import check_pair
from ultramem_megatron.data.record import read_record
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


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A folder with a changed tokenizer.json of ``folder`` alone."""
    settings = json.loads((folder / "tokenizer.json").read_text())
    change(settings)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    (made / "tokenizer.json").write_text(json.dumps(settings))
    return made


TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 9},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
}
STORED = {
    "truncation": (lambda settings: settings.update(truncation=TRUNCATION), ("truncation to 4 tokens",)),
    "padding": (lambda settings: settings.update(padding=PADDING), ("padding",)),
    "dropout": (lambda settings: settings["model"].update(dropout=0.5), ("dropout 0.5 of merges",)),
    "begin token": (lambda settings: settings.update(post_processor=TEMPLATE), ()),
}


@pytest.mark.parametrize(("change", "named"), STORED.values(), ids=STORED)
def test_settings_that_would_change_the_text_are_switched_off_and_named(
    built_folder: Path, change: Callable[[dict[str, Any]], object], named: tuple[str, ...]
) -> None:
    texts = ["oak birch cedar " * 20, "ash"]
    plain, changed = open_tokenizer(built_folder), open_tokenizer(rewrite(built_folder, change))
    assert changed.encode_batch(texts) == plain.encode_batch(texts)
    assert changed.encode(texts[0]) == plain.encode(texts[0])
    assert changed.switched_off == named


def test_a_build_says_what_is_switched_off(data_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = read_record(data_folder).sources["beta"].splits
    folder = rewrite(data_folder, lambda settings: settings.update(truncation=TRUNCATION))
    made = build(data_folder.parent / "raw", folder, ["beta"], workers=1)
    assert made.sources["beta"].splits == before
    assert "tokenizer.json asks for truncation to 4 tokens, which is switched off" in caplog.text


def test_the_size_is_the_largest_number_and_one(built_folder: Path, tmp_path: Path) -> None:
    folder = rewrite(built_folder, lambda settings: settings["model"]["vocab"].update({"\u0120": 70_000}))
    tokenizer = open_tokenizer(folder)
    assert (tokenizer.entries, tokenizer.vocab_size) == (VOCAB_SIZE, 70_001)
    record = build(built_folder.parent / "raw", folder, ["beta"], workers=1)  # 65,536 and more need int32
    assert check_pair(folder / "beta/train").dtype == "int32"
    assert record.tokenizer is not None
    assert record.tokenizer.vocab_size == 70_001
    with pytest.raises(DataError, match=r"has the token number 4000000000, more than the largest, 2147483647"):
        open_tokenizer(rewrite(built_folder, lambda settings: settings["model"]["vocab"].update({"!": 4_000_000_000})))


def test_a_text_that_has_no_token_names_the_file(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"oak": 0}))
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"tokenizer.json cannot encode a text \(WordLevel error"):
        open_tokenizer(tmp_path).encode("elm")


def test_a_prompt_with_an_unpaired_surrogate_is_read(built_folder: Path) -> None:
    tokenizer = open_tokenizer(built_folder)
    assert tokenizer.encode("a\udcffb") == tokenizer.encode("a\ufffdb")


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

"""Byte-level BPE: training it, and the wrapper that the rest of the project uses."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ultramem_megatron.data.jsonl import find_jsonl, index_lines, read_texts
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.record import FolderRecord, TokenizerRecord, read_record, write_record
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import sha256_of, write_text

END_OF_DOCUMENT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"

# enough text for a vocabulary of 8k to 32k; all of it would only cost time
SAMPLE_BYTES = 8_000_000

_BYTES = 256


class Tokenizer:
    """Text <-> token numbers, and the number that ends a document."""

    def __init__(self, inner: tokenizers.Tokenizer, path: Path) -> None:
        eod = inner.token_to_id(END_OF_DOCUMENT)
        if eod is None:
            raise DataError(
                f"{path} has no token {END_OF_DOCUMENT}, which must end each document; add it as a special token, "
                "or train a tokenizer with `ultramem data tokenizer`"
            )
        # a document that contains the text <|endoftext|> must not end there
        inner.encode_special_tokens = True
        self._inner = inner
        self.eod: int = eod
        self.vocab_size: int = inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token numbers of ``text``, without an end-of-document token."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` for many texts, faster."""
        return [encoding.ids for encoding in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``; end-of-document tokens are left out."""
        return str(self._inner.decode(list(tokens), skip_special_tokens=True))


def open_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a data folder.

    Raises:
        DataError: ``folder/tokenizer.json`` is missing, unreadable or has no end-of-document token.
    """
    path = Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; make the folder with `ultramem data prepare --out {folder}`, or the tokenizer "
            f"alone with `ultramem data tokenizer --out {folder}`"
        )
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path} is not a tokenizer file ({error}); delete it and make it again") from None
    return Tokenizer(inner, path)


def make_tokenizer(
    raw: Path,
    folder: Path,
    vocab_size: int = 8192,
    sources: Sequence[str] = (),
    progress: Progress = silent,
) -> Path:
    """Train ``folder/tokenizer.json`` on the JSONL files of ``raw``, unless it was made from the same already.

    Args:
        raw: Holds ``<source>.jsonl``.
        folder: The data folder.
        vocab_size: Entries, at least 257: every byte and the end of a document.
        sources: Names of the JSONL files to use; empty for all.
        progress: Told what is done.

    Raises:
        DataError: No text, too small a vocabulary, or ``tokenizer.json`` was not made here.
    """
    if vocab_size <= _BYTES:
        raise DataError(
            f"--vocab-size {vocab_size} must be above {_BYTES}: every byte needs an entry, and the end of a document"
        )
    files = find_jsonl(raw, sources)
    path = folder / TOKENIZER_FILE
    record = read_record(folder)
    made_from = _fingerprint(files, vocab_size)
    if path.is_file():
        ours = record.tokenizer is not None and record.tokenizer.sha256 == sha256_of(path)
        if not ours or record.tokenizer is None or not record.tokenizer.made_from:
            raise DataError(f"{path} was not made by `ultramem data tokenizer`, so it is kept; move it away first")
        if record.tokenizer.made_from == made_from:
            progress("tokenizer", 1.0)
            return path
    progress("tokenizer", 0.0)
    write_text(path, _train(files, vocab_size))
    trained = TokenizerRecord(sha256=sha256_of(path), vocab_size=open_tokenizer(folder).vocab_size, made_from=made_from)
    write_record(folder, FolderRecord(tokenizer=trained, sources=record.sources))
    progress("tokenizer", 1.0)
    return path


def _fingerprint(files: dict[str, Path], vocab_size: int) -> str:
    parts = [f"{name}:{sha256_of(path)}" for name, path in files.items()]
    return hashlib.sha256(" ".join([*parts, str(vocab_size), str(SAMPLE_BYTES)]).encode()).hexdigest()


def _train(files: dict[str, Path], vocab_size: int) -> str:
    """The JSON of a byte-level BPE. Ties between pairs are broken by token number, so it is deterministic."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(_sample(files), trainer)
    return inner.to_str(pretty=False)


def _sample(files: dict[str, Path]) -> Iterator[str]:
    """Every k-th document of each file, so that about ``SAMPLE_BYTES`` are read in all."""
    total = sum(path.stat().st_size for path in files.values())
    stride = max(1, -(-total // SAMPLE_BYTES))
    for path in files.values():
        yield from read_texts(path, [line.offset for line in index_lines(path)[::stride]])

"""Byte-level BPE: training it, and the wrapper that the rest of the project uses."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ultramem_megatron.data.document import without_surrogates
from ultramem_megatron.data.jsonl import index_lines, read_texts
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.record import FolderRecord, TokenizerRecord, read_record, write_record
from ultramem_megatron.data.text_files import TextFile, find_text, opened_text
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import check_can_write, failures_named, remove_leftovers, sha256_of, write_text

END_OF_DOCUMENT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"

# enough text for a vocabulary of 8k to 32k; all of it would only cost time
SAMPLE_BYTES = 8_000_000

_BYTES = 256
_MOST_ENTRIES = 10_000_000
_LARGEST_ID = 2**31 - 1
"""What a file of tokens can hold."""

logger = logging.getLogger(__name__)


class Tokenizer:
    """Text <-> token numbers, and the number that ends a document."""

    def __init__(self, inner: tokenizers.Tokenizer, path: Path, switched_off: Sequence[str] = ()) -> None:
        """
        Args:
            inner: The library's.
            path: Where it comes from, for errors.
            switched_off: Settings of the file that would change what is encoded.

        Raises:
            DataError: It has no end-of-document token, or numbers that no file of tokens can hold.
        """
        eod = inner.token_to_id(END_OF_DOCUMENT)
        if eod is None:
            raise DataError(
                f"{path} has no token {END_OF_DOCUMENT}, which must end each document; add it as a special token, "
                "or train a tokenizer with `ultramem data tokenizer`"
            )
        # a document that contains the text <|endoftext|> must not end there
        inner.encode_special_tokens = True
        self._inner, self._path = inner, path
        self.eod: int = eod
        self.entries: int = inner.get_vocab_size()
        """How many numbers are in use; there may be gaps between them."""
        self.vocab_size: int = max(inner.get_vocab().values()) + 1
        """The largest number and one."""
        self.switched_off = tuple(switched_off)
        if self.vocab_size - 1 > _LARGEST_ID:
            raise DataError(f"{path} has the token number {self.vocab_size - 1}, more than the largest, {_LARGEST_ID}")

    def encode(self, text: str) -> list[int]:
        """Token numbers of ``text``, without an end-of-document token. Unpaired surrogates are read as U+FFFD.

        Raises:
            DataError: The tokenizer has no token for a part of it.
        """
        return self.encode_batch([without_surrogates(text)[0]])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` for many texts without unpaired surrogates, faster."""
        try:
            encoded = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{self._path} cannot encode a text ({error}); add a token for what is unknown") from None
        return [encoding.ids for encoding in encoded]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``; end-of-document tokens are left out."""
        return str(self._inner.decode(list(tokens), skip_special_tokens=True))


def open_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a data folder. Truncation, padding and BPE dropout that its file asks for are switched off: they
    would cut, lengthen or vary what is encoded.

    Raises:
        DataError: ``folder/tokenizer.json`` is missing, unreadable or has no end-of-document token.
    """
    path = Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; make the folder with `ultramem data prepare --out {folder}`, or the tokenizer "
            f"alone with `ultramem data tokenizer --out {folder}`"
        )
    with failures_named(path, "read"):
        text = path.read_bytes()
    try:
        settings = json.loads(text)
        switched_off = _switch_off(settings)
        # the text as it is where nothing changes: reading is as fast, writing JSON of a large vocabulary is not
        inner = tokenizers.Tokenizer.from_str(json.dumps(settings) if switched_off else text.decode())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and where Rust panics none at all
        raise DataError(f"{path} is not a tokenizer file ({error}); delete it and make it again") from None
    return Tokenizer(inner, path, switched_off)


def report_switched_off(tokenizer: Tokenizer, folder: Path) -> None:
    """Tell people, when the tokenizer's file asks for what is not done."""
    if tokenizer.switched_off:
        logger.warning(
            "%s asks for %s, which is switched off: all of a text is encoded, the same each time",
            folder / TOKENIZER_FILE,
            " and ".join(tokenizer.switched_off),
        )


def _switch_off(settings: dict[str, Any]) -> list[str]:
    """Change ``settings``; what was changed, for people."""
    found = []
    if truncation := settings.get("truncation"):
        found.append(f"truncation to {truncation.get('max_length')} tokens")
    if settings.get("padding"):
        found.append("padding")
    if dropout := settings["model"].get("dropout"):
        found.append(f"dropout {dropout} of merges")
        settings["model"]["dropout"] = None
    settings["truncation"] = settings["padding"] = None
    return found


def make_tokenizer(
    raw: Path,
    folder: Path,
    vocab_size: int = 8192,
    sources: Sequence[str] = (),
    progress: Progress = silent,
    *,
    refuse_surrogates: bool = False,
) -> Path:
    """Train ``folder/tokenizer.json`` on the text of ``raw``, unless it was made from the same already.

    Args:
        raw: Holds a file of documents for each source.
        folder: The data folder.
        vocab_size: Entries, at least 257: every byte and the end of a document.
        sources: Names of the sources to use; empty for all.
        progress: Told what is done.
        refuse_surrogates: As for ``index_lines``.

    Raises:
        DataError: No text, too small a vocabulary, or ``tokenizer.json`` was not made here.
        FileError: ``folder`` cannot be written.
    """
    if not _BYTES < vocab_size <= _MOST_ENTRIES:
        raise DataError(
            f"--vocab-size {vocab_size} must be above {_BYTES}: every byte needs an entry, and the end of a document; "
            f"and at most {_MOST_ENTRIES}"
        )
    files = find_text(raw, sources)
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
    check_can_write(path)
    remove_leftovers(folder)
    progress("tokenizer", 0.0)
    with ExitStack() as opened:
        texts = [opened.enter_context(opened_text(file, folder)) for file in files.values()]
        trained = _train(texts, vocab_size, refuse_surrogates)
    write_text(path, trained)
    entry = TokenizerRecord(sha256=sha256_of(path), vocab_size=open_tokenizer(folder).vocab_size, made_from=made_from)
    write_record(folder, FolderRecord(tokenizer=entry, sources=record.sources))
    progress("tokenizer", 1.0)
    return path


def _fingerprint(files: dict[str, Path], vocab_size: int) -> str:
    parts = [f"{name}:{sha256_of(path)}" for name, path in files.items()]
    return hashlib.sha256(" ".join([*parts, str(vocab_size), str(SAMPLE_BYTES)]).encode()).hexdigest()


def _train(texts: Sequence[TextFile], vocab_size: int, refuse_surrogates: bool) -> str:
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
    inner.train_from_iterator(_sample(texts, refuse_surrogates), trainer)
    return inner.to_str(pretty=False)


def _sample(texts: Sequence[TextFile], refuse_surrogates: bool) -> Iterator[str]:
    """Every k-th document of each file, so that about ``SAMPLE_BYTES`` are read in all."""
    total = sum(text.plain.stat().st_size for text in texts)
    stride = max(1, -(-total // SAMPLE_BYTES))
    for text in texts:
        yield from read_texts(text, index_lines(text, refuse_surrogates=refuse_surrogates).offsets[::stride])

"""``ultramem data build``: JSONL -> ``<source>/{train,validation,test}.{bin,idx}`` for megatron-core."""

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ultramem_megatron.data.encode import EncodedChunk, Encoder
from ultramem_megatron.data.index_cache import INDEX_CACHE
from ultramem_megatron.data.jsonl import Split, find_jsonl, index_lines
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.record import (
    FolderRecord,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    read_record,
    write_record,
)
from ultramem_megatron.data.tokenizer import TOKENIZER_FILE
from ultramem_megatron.files import sha256_of


def build(
    raw: Path,
    folder: Path,
    sources: Sequence[str] = (),
    workers: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> FolderRecord:
    """Encode JSONL files with the tokenizer of ``folder``; a source that is up to date is left alone.

    A source appears as a whole: its files are written aside and renamed, and ``dataset.json`` names it last.

    Args:
        raw: Holds ``<source>.jsonl``.
        folder: Holds ``tokenizer.json``; gets a folder for each source.
        sources: Names of the JSONL files to build; empty for all. Others in ``folder`` stay as they are.
        workers: Processes that encode; all cores when None.
        seed: Of the order of documents within a split.
        progress: Told what is done.

    Returns:
        The record of the folder.

    Raises:
        DataError: No tokenizer, no text, or a line that is no document.
    """
    files = find_jsonl(raw, sources)
    with Encoder(folder, workers) as encoder:
        tokenizer = _tokenizer_record(folder, encoder)
        for name, path in files.items():
            what = f"build {name}"
            progress(what, 0.0)
            wanted = SourceRecord(text_sha256=sha256_of(path), tokenizer_sha256=tokenizer.sha256, seed=seed, splits={})
            if not _up_to_date(folder / name, read_record(folder).sources.get(name), wanted):
                _replace_source(folder / name, path, wanted, encoder, partial(progress, what))
            progress(what, 1.0)
    return read_record(folder)


def _tokenizer_record(folder: Path, encoder: Encoder) -> TokenizerRecord:
    """What ``dataset.json`` says of the tokenizer, brought up to date for one that was put there by hand."""
    record = read_record(folder)
    digest = sha256_of(folder / TOKENIZER_FILE)
    if record.tokenizer and record.tokenizer.sha256 == digest:
        return record.tokenizer
    found = TokenizerRecord(sha256=digest, vocab_size=encoder.tokenizer.vocab_size)
    write_record(folder, replace(record, tokenizer=found))
    return found


def _up_to_date(source: Path, known: SourceRecord | None, wanted: SourceRecord) -> bool:
    if known is None or replace(known, splits={}) != wanted:
        return False
    return all(_has_files(source / split, known.splits[split]) for split in Split.ALL)


def _has_files(stem: Path, known: SplitRecord) -> bool:
    binary, index = stem.with_suffix(".bin"), stem.with_suffix(".idx")
    if known.documents == 0:
        return not binary.exists()
    return binary.is_file() and index.is_file() and binary.stat().st_size == known.bytes


def _replace_source(
    source: Path, path: Path, wanted: SourceRecord, encoder: Encoder, progress: Callable[[float], None]
) -> None:
    folder, name = source.parent, source.name
    aside = folder / f".{name}.{os.getpid()}.part"
    try:
        aside.mkdir(parents=True)
        splits = _write_splits(path, aside, wanted.seed, encoder, progress)
        # while files change, the record does not name the source: an interrupted build is seen as such
        record = read_record(folder)
        others = {other: entry for other, entry in record.sources.items() if other != name}
        write_record(folder, replace(record, sources=others))
        if source.exists():
            shutil.rmtree(source)
        shutil.rmtree(folder / INDEX_CACHE / name, ignore_errors=True)  # of the old files
        aside.replace(source)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    named = {**others, name: replace(wanted, splits=splits)}
    write_record(folder, replace(record, sources=dict(sorted(named.items()))))


def _write_splits(
    path: Path, aside: Path, seed: int, encoder: Encoder, progress: Callable[[float], None]
) -> dict[str, SplitRecord]:
    lines = index_lines(path)
    splits = {}
    done = 0
    for split in Split.ALL:
        offsets = [line.offset for line in lines if Split.of(line.document_id) == split]
        random.Random(seed).shuffle(offsets)
        writer = _SplitWriter(aside / split, encoder)
        for chunk in encoder.encode(path, offsets):
            writer.add(chunk)
            done += len(chunk.lengths)
            progress(done / len(lines))
        splits[split] = writer.finish()
    return splits


class _SplitWriter:
    """Writes one ``.bin`` and ``.idx``; leaves neither when no document came."""

    def __init__(self, stem: Path, encoder: Encoder) -> None:
        from ultramem_megatron.data.mcore import IndexedDatasetBuilder  # slow to import: torch

        self._binary, self._index = stem.with_suffix(".bin"), stem.with_suffix(".idx")
        self._builder = IndexedDatasetBuilder(str(self._binary), dtype=encoder.dtype)
        self._documents = self._tokens = 0

    def add(self, chunk: EncodedChunk) -> None:
        """Append the documents of ``chunk``."""
        start = 0
        for length in chunk.lengths:
            self._builder.add_document(chunk.tokens[start : start + length], [length])
            start += length
        self._documents += len(chunk.lengths)
        self._tokens += start

    def finish(self) -> SplitRecord:
        """Close the files and say what they hold."""
        self._builder.finalize(str(self._index))
        size, digest = self._binary.stat().st_size, sha256_of(self._binary)
        if not self._documents:
            self._binary.unlink()
            self._index.unlink()
        return SplitRecord(documents=self._documents, tokens=self._tokens, bytes=size, sha256=digest)

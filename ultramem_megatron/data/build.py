"""``ultramem data build``: JSONL -> ``<source>/{train,validation,test}.{bin,idx}`` for megatron-core."""

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ultramem_megatron.data.content import scan
from ultramem_megatron.data.encode import EncodedChunk, Encoder
from ultramem_megatron.data.indexed import INDEX_CACHE, check_pair
from ultramem_megatron.data.jsonl import Split, index_lines
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.record import (
    FolderRecord,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    read_record,
    write_record,
)
from ultramem_megatron.data.text_files import TextFile, find_text, opened_text
from ultramem_megatron.data.tokenizer import TOKENIZER_FILE, report_switched_off
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import check_folder, remove_leftovers, sha256_of, temporary_folder


def build(
    raw: Path,
    folder: Path,
    sources: Sequence[str] = (),
    workers: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
    *,
    refuse_surrogates: bool = False,
) -> FolderRecord:
    """Encode files of documents with the tokenizer of ``folder``; a source that is up to date is left alone.

    A source appears as a whole: its files are written aside and renamed, and ``dataset.json`` names it last. What a
    killed build left is removed.

    Args:
        raw: Holds a file of documents for each source; ``find_text`` says how it is named.
        folder: Holds ``tokenizer.json``; gets a folder for each source.
        sources: Names of those to build; empty for all. Others in ``folder`` stay as they are.
        workers: Processes that encode; all cores when None.
        seed: Of the order of documents within a split.
        progress: Told what is done.
        refuse_surrogates: As for ``index_lines``.

    Returns:
        The record of the folder.

    Raises:
        DataError: No tokenizer, no text, or a line that is no document.
        FileError: ``folder`` cannot be written.
    """
    files = find_text(raw, sources)
    with Encoder(folder, workers) as encoder:
        report_switched_off(encoder.tokenizer, folder)
        check_folder(folder)
        remove_leftovers(folder)
        tokenizer = _tokenizer_record(folder, encoder)
        for name, path in files.items():
            what = f"build {name}"
            progress(what, 0.0)
            wanted = SourceRecord(text_sha256=sha256_of(path), tokenizer_sha256=tokenizer.sha256, seed=seed, splits={})
            known = read_record(folder).sources.get(name)
            if not _up_to_date(folder / name, known, wanted, refuse_surrogates):
                with opened_text(path, folder) as text:
                    _replace_source(folder / name, text, wanted, encoder, partial(progress, what), refuse_surrogates)
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


def _up_to_date(source: Path, known: SourceRecord | None, wanted: SourceRecord, refuse_surrogates: bool) -> bool:
    if known is None or (refuse_surrogates and known.replaced_surrogates):
        return False
    if replace(known, splits={}, blank_lines=0, replaced_surrogates=0) != wanted:
        return False
    return all(_is_as_recorded(source / split, known.splits.get(split)) for split in Split.ALL)


def _is_as_recorded(stem: Path, known: SplitRecord | None) -> bool:
    """Every byte is compared, so that building again mends what is damaged."""
    if known is None:
        return False
    if known.documents == 0:
        return not stem.with_suffix(".bin").exists()
    try:
        return scan(check_pair(stem)) == known.content
    except DataError:
        return False


def _replace_source(
    source: Path,
    text: TextFile,
    wanted: SourceRecord,
    encoder: Encoder,
    progress: Callable[[float], None],
    refuse_surrogates: bool,
) -> None:
    folder, name = source.parent, source.name
    with temporary_folder(folder, name) as room:
        aside = room / name  # the room itself is closed to other users
        aside.mkdir()
        made = _write_splits(text, aside, wanted, encoder, progress, refuse_surrogates)
        # while files change, the record does not name the source: an interrupted build is seen as such
        record = read_record(folder)
        others = {other: entry for other, entry in record.sources.items() if other != name}
        write_record(folder, replace(record, sources=others))
        if source.exists():
            shutil.rmtree(source)
        shutil.rmtree(folder / INDEX_CACHE / name, ignore_errors=True)  # of the old files
        aside.replace(source)
    write_record(folder, replace(record, sources=dict(sorted({**others, name: made}.items()))))


def _write_splits(
    text: TextFile,
    aside: Path,
    wanted: SourceRecord,
    encoder: Encoder,
    progress: Callable[[float], None],
    refuse_surrogates: bool,
) -> SourceRecord:
    lines = index_lines(text, refuse_surrogates=refuse_surrogates)
    splits = {}
    done = 0
    for split in Split.ALL:
        offsets = lines.offsets_of(split)
        random.Random(wanted.seed).shuffle(offsets)
        writer = _SplitWriter(aside / split, encoder)
        for chunk in encoder.encode(text, offsets):
            writer.add(chunk)
            done += len(chunk.lengths)
            progress(done / len(lines))
        splits[split] = writer.finish()
    return replace(wanted, splits=splits, blank_lines=lines.blank_lines, replaced_surrogates=lines.replaced)


class _SplitWriter:
    """Writes one ``.bin`` and ``.idx``; leaves neither when no document came."""

    def __init__(self, stem: Path, encoder: Encoder) -> None:
        from ultramem_megatron.data.mcore import PairWriter  # slow to import: torch

        self._stem, self._writer = stem, PairWriter(stem, encoder.dtype)

    def add(self, chunk: EncodedChunk) -> None:
        """Append the documents of ``chunk``."""
        start = 0
        for length in chunk.lengths:
            self._writer.add_document(chunk.tokens[start : start + length], [length])
            start += length

    def finish(self) -> SplitRecord:
        """Close the files and say what they hold."""
        self._writer.finish()
        if not self._writer.documents:
            self._stem.with_suffix(".bin").unlink()
            self._stem.with_suffix(".idx").unlink()
            return SplitRecord(documents=0, tokens=0, bytes=0, sha256="")
        info = check_pair(self._stem)
        content = scan(info)
        return SplitRecord(
            documents=info.documents,
            tokens=info.tokens,
            bytes=info.num_bytes,
            sha256=content.binary_sha256,
            index_sha256=content.index_sha256,
            spots_sha256=content.spots_sha256,
            largest_token=content.largest_token,
        )

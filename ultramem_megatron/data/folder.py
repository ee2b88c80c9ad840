"""A data folder as training finds it: each file against its record, and what was not compared. No torch."""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.content import (
    SPOTTED_BYTES,
    PairContent,
    cached_scan,
    index_hash,
    refuse_foreign_tokens,
    spots_hash,
)
from ultramem_megatron.data.indexed import PairInfo, check_pair, pair_exists, source_folders
from ultramem_megatron.data.jsonl import Split
from ultramem_megatron.data.record import RECORD_FILE, FolderRecord, SplitRecord, read_record
from ultramem_megatron.data.tokenizer import TOKENIZER_FILE, Tokenizer, open_tokenizer
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import sha256_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedPair:
    """One split of one source."""

    info: PairInfo
    content: PairContent
    """As recorded; what of it was compared, ``unread_bytes`` says."""
    unread_bytes: int
    """Of the ``.bin``, that were not compared with its hash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedFolder:
    """One split of the sources of a run."""

    folder: Path
    tokenizer_sha256: str
    vocab_size: int
    """Of the tokenizer."""
    eod: int
    pairs: dict[str, CheckedPair]
    """By the name of the source, sorted, so that the order of a YAML file does not matter."""


def check_folder_for(config: RunConfig, split: str) -> CheckedFolder:
    """What a run can read of ``data.folder``. For validation, sources without text enough are left out.

    Raises:
        DataError: Files are missing, damaged or do not fit the model, or ``data.sources`` names no source.
        FileError: One cannot be read.
    """
    folder = Path(config.data.folder)
    if not folder.is_dir():
        raise DataError(
            f"data.folder = {folder} does not exist; make it with `ultramem data prepare --out {folder}`, or set "
            "data.synthetic=true to train on generated tokens"
        )
    tokenizer = open_fitting_tokenizer(config)
    digest = sha256_of(folder / TOKENIZER_FILE)
    record = read_record(folder)
    names = _source_names(config, folder)
    _refuse_other_tokenizer(folder, names, record, digest)
    pairs = {}
    for name in names:
        stem = folder / name / split
        if split == Split.TRAIN or _has_text(stem, config.model.seq_length):
            pairs[name] = check_against_record(stem, record)
            _check_tokens(pairs[name], tokenizer, config)
    return CheckedFolder(
        folder=folder, tokenizer_sha256=digest, vocab_size=tokenizer.vocab_size, eod=tokenizer.eod, pairs=pairs
    )


def open_fitting_tokenizer(config: RunConfig) -> Tokenizer:
    """The tokenizer of ``data.folder``.

    Raises:
        DataError: There is none, or it has tokens that the model has not.
    """
    tokenizer = open_tokenizer(Path(config.data.folder))
    if tokenizer.vocab_size > config.model.vocab_size:
        gaps = "" if tokenizer.entries == tokenizer.vocab_size else f", the largest of them {tokenizer.vocab_size - 1}"
        raise DataError(
            f"{config.data.folder}/{TOKENIZER_FILE} has {tokenizer.entries} entries{gaps}, more than model.vocab_size "
            f"= {config.model.vocab_size}; set model.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def check_against_record(stem: Path, record: FolderRecord) -> CheckedPair:
    """Sizes, index and spots of a pair against ``dataset.json``; a pair that it does not name is read once.

    Raises:
        DataError: It is not what the record says; names the file and what differs.
    """
    info = check_pair(stem)
    content = compare_cheaply(info, record)
    if content is None:
        content = cached_scan(info)
        if known := split_record(info, record):
            _compare(info, known, {"sha256": content.binary_sha256})
    return CheckedPair(info=info, content=content, unread_bytes=beyond_spots(info))


def compare_cheaply(info: PairInfo, record: FolderRecord) -> PairContent | None:
    """What the record says of a pair, whose sizes, index and spots are as it says; None when it says nothing of them.

    Raises:
        DataError: They are not.
    """
    known = split_record(info, record)
    if known is None or known.content is None:
        return None
    _compare(info, known, {"index_sha256": index_hash(info), "spots_sha256": spots_hash(info)})
    return known.content


def split_record(info: PairInfo, record: FolderRecord) -> SplitRecord | None:
    """What the record says of a pair."""
    source = record.sources.get(info.stem.parent.name)
    return source.splits.get(info.stem.name) if source else None


def beyond_spots(info: PairInfo) -> int:
    """Bytes of the ``.bin`` that spots leave out, at the least."""
    return info.num_bytes - SPOTTED_BYTES if info.num_bytes > SPOTTED_BYTES else 0


def _compare(info: PairInfo, known: SplitRecord, hashes: dict[str, str]) -> None:
    found = {"documents": info.documents, "tokens": info.tokens, "bytes": info.num_bytes, **hashes}
    for name, here in found.items():
        there = getattr(known, name)
        if here != there:
            folder = info.stem.parent.parent
            path = info.index if name in ("documents", "index_sha256") else info.binary
            raise DataError(
                f"{path} is not the file that {folder / RECORD_FILE} speaks of: {name} {here} here, {there} there; "
                f"build it again with `ultramem data build --sources {info.stem.parent.name} --out {folder}`, copy it "
                f"again, or, if it is meant to be other data, take its entry out of {RECORD_FILE}"
            )


def _check_tokens(pair: CheckedPair, tokenizer: Tokenizer, config: RunConfig) -> None:
    refuse_foreign_tokens(pair.info, pair.content, config.model.vocab_size, "model.vocab_size")
    if pair.content.largest_token >= tokenizer.vocab_size:
        logger.warning(
            "%s holds the token %d, which tokenizer.json beside it does not have: its largest is %d",
            *(pair.info.binary, pair.content.largest_token, tokenizer.vocab_size - 1),
        )


def _source_names(config: RunConfig, folder: Path) -> list[str]:
    present = source_folders(folder)
    if not present:
        raise DataError(
            f"{folder} holds no <source>/train.bin; make it with `ultramem data build --out {folder}`, or all of the "
            f"folder with `ultramem data prepare --out {folder}`"
        )
    for name in config.data.sources:
        if not (folder / name).is_dir():
            near = difflib.get_close_matches(name, present, n=1, cutoff=0.0)
            raise DataError(
                f"data.sources.{name} is not a source of {folder}, which holds {', '.join(present)}; "
                f'the nearest is "{near[0]}"'
            )
    return sorted(config.data.sources) or present


def _refuse_other_tokenizer(folder: Path, names: list[str], record: FolderRecord, digest: str) -> None:
    for name in names:
        entry = record.sources.get(name)
        if entry and entry.tokenizer_sha256 != digest:
            raise DataError(
                f"{folder / name} was encoded with another tokenizer than {folder}/tokenizer.json (sha256 "
                f"{entry.tokenizer_sha256[:16]}..., here {digest[:16]}...); put that one back, encode it again "
                f"with `ultramem data build --sources {name} --out {folder}`, or leave it out of data.sources"
            )


def _has_text(stem: Path, seq_length: int) -> bool:
    if not pair_exists(stem):
        return False
    tokens = check_pair(stem).tokens
    if tokens <= seq_length:
        logger.warning("%s.bin holds %d tokens, less than one sample; not validated on", stem, tokens)
    return tokens > seq_length

"""``ultramem data info``: what a data folder holds, read from its files and checked on the way. No torch."""

from dataclasses import dataclass
from pathlib import Path

from ultramem_megatron.data.folder import beyond_spots, compare_cheaply, split_record
from ultramem_megatron.data.indexed import check_pair, pair_exists, source_folders
from ultramem_megatron.data.jsonl import Split
from ultramem_megatron.data.record import FolderRecord, read_record
from ultramem_megatron.data.tokenizer import open_tokenizer
from ultramem_megatron.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """One split of one source."""

    documents: int
    tokens: int
    bytes: int
    sha256: str
    """Of the ``.bin`` as recorded when it was built; empty for a folder that was made elsewhere."""
    largest_token: int | None
    """As recorded."""
    unread_bytes: int
    """Of the ``.bin``, that were not compared with a hash; `ultramem data verify` does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderInfo:
    """A data folder."""

    folder: str
    vocab_size: int
    end_of_document: int
    train_tokens: int
    """Over all sources."""
    sources: dict[str, dict[str, SplitInfo]]
    """Source -> split -> numbers; splits without documents are left out."""


def describe(folder: Path) -> FolderInfo:
    """What ``folder`` holds.

    Raises:
        DataError: It is no data folder, or a file of it is not what sizes, index, spots and ``dataset.json`` say.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; make it with `ultramem data prepare --out {folder}`")
    tokenizer = open_tokenizer(folder)
    record = read_record(folder)
    sources: dict[str, dict[str, SplitInfo]] = {}
    for name in source_folders(folder):
        sources[name] = {
            split: _split_info(folder / name / split, record)
            for split in Split.ALL
            if pair_exists(folder / name / split)
        }
    return FolderInfo(
        folder=str(folder),
        vocab_size=tokenizer.vocab_size,
        end_of_document=tokenizer.eod,
        train_tokens=sum(splits[Split.TRAIN].tokens for splits in sources.values()),
        sources=sources,
    )


def _split_info(stem: Path, record: FolderRecord) -> SplitInfo:
    pair = check_pair(stem)
    content, known = compare_cheaply(pair, record), split_record(pair, record)
    return SplitInfo(
        documents=pair.documents,
        tokens=pair.tokens,
        bytes=pair.num_bytes,
        sha256=known.sha256 if known else "",
        largest_token=content.largest_token if content else None,
        unread_bytes=beyond_spots(pair) if content else pair.num_bytes,
    )

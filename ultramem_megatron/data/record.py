"""``dataset.json``: what a data folder says of itself. It tells what is up to date."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from ultramem_megatron.errors import DataError
from ultramem_megatron.files import write_json

RECORD_FILE = "dataset.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRecord:
    """The tokenizer of the folder."""

    sha256: str
    vocab_size: int
    made_from: str = ""
    """Fingerprint of its training text and settings; empty when it was not trained here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRecord:
    """One ``.bin`` and its ``.idx``. Without documents there are no files."""

    documents: int
    tokens: int
    bytes: int
    """Size of the ``.bin``."""
    sha256: str
    """Of the ``.bin``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord:
    """One source and all that its tokens depend on."""

    text_sha256: str
    tokenizer_sha256: str
    seed: int
    splits: dict[str, SplitRecord]


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderRecord:
    """The whole of ``dataset.json``."""

    tokenizer: TokenizerRecord | None = None
    sources: dict[str, SourceRecord] = field(default_factory=dict)


def read_record(folder: Path) -> FolderRecord:
    """The record of ``folder``, empty when there is none.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return FolderRecord()
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = TokenizerRecord(**plain["tokenizer"]) if plain["tokenizer"] else None
        sources = {
            name: SourceRecord(
                **{**entry, "splits": {split: SplitRecord(**values) for split, values in entry["splits"].items()}}
            )
            for name, entry in plain["sources"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete it and run `ultramem data build` again"
        ) from None
    return FolderRecord(tokenizer=tokenizer, sources=sources)


def write_record(folder: Path, record: FolderRecord) -> None:
    """Replace ``dataset.json`` as a whole."""
    write_json(folder / RECORD_FILE, {"format": FORMAT, **dataclasses.asdict(record)})

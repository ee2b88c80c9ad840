"""``dataset.json``: what a data folder says of itself. It tells what is up to date."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from ultramem_megatron.data.content import PairContent
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import failures_named, write_json

RECORD_FILE = "dataset.json"
FORMAT = 2
"""1 had no hash of an index, no largest token and no spots."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRecord:
    """The tokenizer of the folder."""

    sha256: str
    vocab_size: int
    """Its largest token number and one."""
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
    index_sha256: str = ""
    """Of the ``.idx``; empty in a record of format 1, as what follows."""
    spots_sha256: str = ""
    """Of pieces of the ``.bin``; see ``content.py``."""
    largest_token: int = -1

    @property
    def content(self) -> PairContent | None:
        """What the files must hold; None for a record of format 1."""
        if not self.index_sha256:
            return None
        return PairContent(
            binary_sha256=self.sha256,
            index_sha256=self.index_sha256,
            spots_sha256=self.spots_sha256,
            smallest_token=0,
            largest_token=self.largest_token,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord:
    """One source and all that its tokens depend on."""

    text_sha256: str
    tokenizer_sha256: str
    seed: int
    splits: dict[str, SplitRecord]
    blank_lines: int = 0
    """Passed over in the text."""
    replaced_surrogates: int = 0
    """Unpaired ones of the text, each read as U+FFFD."""


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
        with failures_named(path, "read"):
            plain = json.loads(path.read_bytes())
        if plain.get("format", 1) not in range(1, FORMAT + 1):
            raise DataError(
                f"{path} is of format {plain['format']!r}, and this program knows those up to {FORMAT}; use the "
                "program that made the folder, or a newer one"
            )
        return _FOLDER_RECORD.validate_python(plain)
    except DataError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {reason}); delete it and run `ultramem data build` again"
        ) from None


_FOLDER_RECORD = TypeAdapter(FolderRecord)


def write_record(folder: Path, record: FolderRecord) -> None:
    """Replace ``dataset.json`` as a whole."""
    write_json(folder / RECORD_FILE, {"format": FORMAT, **dataclasses.asdict(record)})

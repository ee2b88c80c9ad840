"""``ultramem data verify``: every file of a data folder is read and compared with its hash. No torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ultramem_megatron.data.content import PairContent, cached_scan, read_cached, scan
from ultramem_megatron.data.folder import split_record
from ultramem_megatron.data.indexed import check_pair, pair_exists, source_folders
from ultramem_megatron.data.jsonl import Split
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.recall.store import open_questions, read_task_records
from ultramem_megatron.data.record import RECORD_FILE, FolderRecord, read_record
from ultramem_megatron.data.tokenizer import TOKENIZER_FILE, open_tokenizer
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import sha256_of

_SHOWN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """A whole data folder."""

    folder: str
    files: int
    """That were compared with a hash."""
    bytes: int
    """Of them."""
    unrecorded: tuple[str, ...]
    """Files that no hash was known of. Their hashes are kept now: a later call compares them."""


def verify(folder: Path, progress: Progress = silent) -> Verified:
    """Compare everything that has a hash: tokenizer, both files of every split, questions of tasks.

    Raises:
        DataError: Something is not what it was; names what, up to a few.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; make it with `ultramem data prepare --out {folder}`")
    record = read_record(folder)
    faults = [*_tokenizer_faults(folder, record), *_task_faults(folder)]
    compared: list[Path] = [folder / TOKENIZER_FILE] if record.tokenizer else []
    unrecorded: list[Path] = [] if record.tokenizer else [folder / TOKENIZER_FILE]
    stems = list(_stems(folder, record))
    for number, stem in enumerate(stems):
        progress("verify", number / len(stems))
        found, known = _pair_faults(stem, record)
        faults += found
        (compared if known else unrecorded).extend(stem.with_suffix(suffix) for suffix in (".bin", ".idx"))
    progress("verify", 1.0)
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DataError(
            f"{folder} is damaged: {'; '.join(faults[:_SHOWN])}{more}. Make it again with `ultramem data build --out "
            f"{folder}`, or copy it again"
        )
    return Verified(
        folder=str(folder),
        files=len(compared),
        bytes=sum(path.stat().st_size for path in compared),
        unrecorded=tuple(str(path.relative_to(folder)) for path in unrecorded),
    )


def _stems(folder: Path, record: FolderRecord) -> Iterator[Path]:
    """Of every split that is there or should be."""
    for name in sorted({*source_folders(folder), *record.sources}):
        splits = record.sources[name].splits if name in record.sources else {}
        for split in Split.ALL:
            if pair_exists(folder / name / split) or (split in splits and splits[split].documents):
                yield folder / name / split


def _tokenizer_faults(folder: Path, record: FolderRecord) -> list[str]:
    vocab_size = open_tokenizer(folder).vocab_size
    digest = sha256_of(folder / TOKENIZER_FILE)
    faults = []
    if record.tokenizer and digest != record.tokenizer.sha256:
        faults.append(f"{TOKENIZER_FILE} has sha256 {digest}, recorded is {record.tokenizer.sha256}")
    for name, source in record.sources.items():
        if source.tokenizer_sha256 != digest:
            faults.append(f"{name} was encoded with another tokenizer, of sha256 {source.tokenizer_sha256}")
        for split, one in source.splits.items():
            if one.largest_token >= vocab_size:
                faults.append(
                    f"{name}/{split}.bin holds token {one.largest_token}, the tokenizer ends at {vocab_size - 1}"
                )
    return faults


def _task_faults(folder: Path) -> list[str]:
    faults = []
    for name in read_task_records(folder):
        try:
            open_questions(folder, name)
        except DataError as error:
            faults.append(str(error))
    return faults


def _pair_faults(stem: Path, record: FolderRecord) -> tuple[list[str], bool]:
    """What is wrong with a pair, and whether there was a hash to compare it with."""
    try:
        info = check_pair(stem)
    except DataError as error:
        return [str(error)], True
    known = split_record(info, record)
    if known is None:
        before = read_cached(info)
        if before is None:
            cached_scan(info)
            return [], False
        return _differences(stem, scan(info), before), True
    found = scan(info)
    if known.content is None:  # a record of format 1 has one hash
        same = found.binary_sha256 == known.sha256
        return [] if same else [
            f"{_short(stem)}.bin has sha256 {found.binary_sha256}, recorded is {known.sha256}"
        ], True
    numbers = {"documents": info.documents, "tokens": info.tokens, "bytes": info.num_bytes}
    wrong = [
        f"{_short(stem)} has {here} {name}, recorded are {getattr(known, name)}"
        for name, here in numbers.items()
        if here != getattr(known, name)
    ]
    return [*wrong, *_differences(stem, found, known.content)], True


def _differences(stem: Path, found: PairContent, known: PairContent) -> list[str]:
    names = {
        "binary_sha256": ".bin has sha256",
        "index_sha256": ".idx has sha256",
        "largest_token": ".bin has the token",
    }
    here, there = asdict(found), asdict(known)
    differ = [name for name in names if here[name] != there[name]]
    if differ == [] and found != known:
        return [f"{RECORD_FILE} is wrong about {_short(stem)}.bin: spots {known.spots_sha256}"]
    return [f"{_short(stem)}{names[name]} {here[name]}, recorded is {there[name]}" for name in differ]


def _short(stem: Path) -> str:
    return f"{stem.parent.name}/{stem.name}"

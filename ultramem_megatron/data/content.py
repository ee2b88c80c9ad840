"""What the files of a split hold, byte by byte: hashes, and the largest token. No torch.

Hashes of whole files are made where all is read anyway: when data are built, when foreign data are met for the first
time, and by ``ultramem data verify``. A start compares what is cheap: sizes, the index, and spots of the tokens.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ultramem_megatron.data.indexed import PairInfo, cache_folder
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import failures_named, sha256_of, write_json

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 2**23  # a multiple of every size of a token
_SPOTS = 64
_SPOT_BYTES = 2**12
SPOTTED_BYTES = _SPOTS * _SPOT_BYTES
"""A file of at most so many bytes is hashed whole by its spots."""
_LARGE_BYTES = 2**33


@dataclass(frozen=True, kw_only=True, slots=True)
class PairContent:
    """What a ``.bin`` and its ``.idx`` hold."""

    binary_sha256: str
    index_sha256: str
    spots_sha256: str
    """Of pieces of the ``.bin``, evenly spread from its first to its last byte."""
    smallest_token: int
    largest_token: int


def scan(info: PairInfo) -> PairContent:
    """Read both files whole.

    Raises:
        FileError: One cannot be read.
    """
    digest = hashlib.sha256()
    smallest, largest = 2**63, -(2**63)
    with failures_named(info.binary, "read"), info.binary.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            tokens = np.frombuffer(block, dtype=info.dtype)
            smallest, largest = min(smallest, int(tokens.min())), max(largest, int(tokens.max()))
    return PairContent(
        binary_sha256=digest.hexdigest(),
        index_sha256=index_hash(info),
        spots_sha256=spots_hash(info),
        smallest_token=smallest,
        largest_token=largest,
    )


def index_hash(info: PairInfo) -> str:
    """Of the whole ``.idx``."""
    with failures_named(info.index, "read"):
        return sha256_of(info.index)


def spots_hash(info: PairInfo) -> str:
    """Of pieces of the ``.bin``: a file of another content, or one that a copy has left empty, is told by them."""
    size = info.num_bytes
    digest = hashlib.sha256()
    with failures_named(info.binary, "read"), info.binary.open("rb") as stream:
        if size <= SPOTTED_BYTES:
            return hashlib.sha256(stream.read()).hexdigest()
        for number in range(_SPOTS):
            stream.seek(number * (size - _SPOT_BYTES) // (_SPOTS - 1))
            digest.update(stream.read(_SPOT_BYTES))
    return digest.hexdigest()


def cached_scan(info: PairInfo) -> PairContent:
    """``scan`` of files that nobody has recorded, done once and kept beside the data.

    What is kept serves as long as sizes, times of change, index and spots are the same.
    """
    known = read_cached(info)
    if known and known.index_sha256 == index_hash(info) and known.spots_sha256 == spots_hash(info):
        return known
    if info.num_bytes > _LARGE_BYTES:
        logger.warning(
            "%s has no entry in dataset.json: its %d bytes are read once, or by `ultramem data verify %s` before a run",
            *(info.binary, info.num_bytes, info.stem.parent.parent),
        )
    content = scan(info)
    try:
        write_json(_cache_file(info), {**_times(info), "content": asdict(content)})
    except OSError as error:
        logger.warning("%s; so %s is read at every start", error, info.binary)
    return content


def read_cached(info: PairInfo) -> PairContent | None:
    """What an earlier scan found in these files; None when there was none, or a file was written since."""
    try:
        plain = json.loads(_cache_file(info).read_bytes())
        if any(plain[name] != value for name, value in _times(info).items()):
            return None
        return PairContent(**plain["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refuse_foreign_tokens(info: PairInfo, content: PairContent, vocab_size: int, field: str) -> None:
    """Raise when a token is outside of [0, vocab_size).

    Args:
        info: The files.
        content: Of them.
        vocab_size: Numbers that are known.
        field: What says so, for the error.

    Raises:
        DataError: With the token and the remedy.
    """
    if content.smallest_token < 0:
        raise DataError(
            f"{info.binary} holds the token {content.smallest_token}; no token is negative: encode it again"
        )
    if content.largest_token >= vocab_size:
        raise DataError(
            f"{info.binary} holds the token {content.largest_token}, and {field} = {vocab_size} ends at token "
            f"{vocab_size - 1}; set {field}={content.largest_token + 1} or more, or encode the text with the tokenizer "
            "of this folder"
        )


def _cache_file(info: PairInfo) -> Path:
    return cache_folder(info.stem) / f"{info.stem.name}-content.json"


def _times(info: PairInfo) -> dict[str, list[int]]:
    stats = {path.suffix: path.stat() for path in (info.binary, info.index)}
    return {suffix: [stat.st_size, stat.st_mtime_ns] for suffix, stat in stats.items()}

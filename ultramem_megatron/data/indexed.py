"""The header of a ``.idx`` file, and the check that ``.bin`` and ``.idx`` belong together. No torch."""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultramem_megatron.errors import DataError
from ultramem_megatron.files import failures_named

# layout and type codes: megatron-core 0.16.1, indexed_dataset.py
_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, type code, sequences, documents + 1
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_REMEDY = "build it again with `ultramem data build`, or copy it again"
_CHUNK = 2**20

INDEX_CACHE = "index_cache"
"""Folder of a data folder that holds what training found out about it; made and used by training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairInfo:
    """What a checked pair of files holds."""

    stem: Path
    documents: int
    tokens: int
    dtype: str
    """Of a token."""
    index_bytes: int
    """Of the ``.idx``."""
    fingerprint: str
    """Of the document lengths; with a seed and a sequence length it determines the order of samples."""

    @property
    def binary(self) -> Path:
        """The ``.bin``."""
        return self.stem.with_name(f"{self.stem.name}.bin")

    @property
    def index(self) -> Path:
        """The ``.idx``."""
        return self.stem.with_name(f"{self.stem.name}.idx")

    @property
    def num_bytes(self) -> int:
        """Of the ``.bin``."""
        return self.tokens * np.dtype(self.dtype).itemsize


def pair_exists(stem: Path) -> bool:
    """Whether any of the two files is there."""
    return stem.with_suffix(".bin").exists() or stem.with_suffix(".idx").exists()


def source_folders(folder: Path) -> list[str]:
    """Names of the sources of a data folder: its sub-folders with training text, sorted."""
    found = {path.parent.name for suffix in ("bin", "idx") for path in folder.glob(f"*/train.{suffix}")}
    return sorted(name for name in found if not name.startswith("."))  # a dot: a build under way


def cache_folder(stem: Path) -> Path:
    """Where training keeps what it found out about a source."""
    source = stem.parent
    return source.parent / INDEX_CACHE / source.name


def check_pair(stem: Path) -> PairInfo:
    """Read ``stem.idx``, and hold it and the size of ``stem.bin`` against each other.

    Raises:
        DataError: A file is missing, is no indexed dataset, or the index speaks of other places than the tokens have.
        FileError: A file cannot be read.
    """
    binary, index = stem.with_suffix(".bin"), stem.with_suffix(".idx")
    for path in (binary, index):
        if not path.is_file():
            raise DataError(
                f"{path} does not exist; make it with `ultramem data build --out {stem.parent.parent}`, or all of "
                f"the folder with `ultramem data prepare --out {stem.parent.parent}`"
            )
    with failures_named(index, "read"):
        dtype, lengths, starts, borders = _read_index(index)
    item_bytes = np.dtype(dtype).itemsize
    tokens = int(lengths.sum(dtype=np.int64))
    if binary.stat().st_size != tokens * item_bytes:
        raise DataError(
            f"{binary} has {binary.stat().st_size} bytes, but its index {index.name} speaks of {tokens} tokens of "
            f"{item_bytes} bytes = {tokens * item_bytes}; the file was cut off or belongs to another index: {_REMEDY}"
        )
    _check_places(index, lengths, starts, item_bytes)
    _check_borders(index, borders, len(lengths))
    digest = hashlib.sha256(np.ascontiguousarray(lengths).data).hexdigest()
    return PairInfo(
        stem=stem,
        documents=len(lengths),
        tokens=tokens,
        dtype=dtype,
        index_bytes=index.stat().st_size,
        fingerprint=digest,
    )


def _read_index(index: Path) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Type of a token; lengths [sequences], first bytes [sequences], borders of documents [documents + 1]."""
    size = index.stat().st_size
    with index.open("rb") as stream:
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size or header[: len(_MAGIC)] != _MAGIC:
        raise DataError(f"{index} is not the index of an indexed dataset; {_REMEDY}")
    _, version, code, sequences, borders = _HEADER.unpack(header)
    if version != 1 or code not in _DTYPES:
        raise DataError(f"{index} has version {version} and type code {code}, which are unknown; {_REMEDY}")
    # int32 lengths, int64 positions, int64 document borders
    expected = _HEADER.size + sequences * (4 + 8) + borders * 8
    if size != expected:
        raise DataError(f"{index} has {size} bytes, but its header asks for {expected}; it was cut off: {_REMEDY}")
    if not sequences:
        raise DataError(f"{index} holds no document; {_REMEDY}")
    content = np.memmap(index, dtype=np.uint8, mode="r", offset=_HEADER.size, shape=(size - _HEADER.size,))
    lengths, starts, ends = np.split(content, [sequences * 4, sequences * 12])
    return _DTYPES[code], lengths.view(np.int32), starts.view(np.int64), ends.view(np.int64)


def _check_places(index: Path, lengths: np.ndarray, starts: np.ndarray, item_bytes: int) -> None:
    """Each sequence begins where the one before it ends."""
    first = 0
    for chunk in range(0, len(lengths), _CHUNK):
        part = lengths[chunk : chunk + _CHUNK].astype(np.int64)
        ends = first + np.cumsum(part) * item_bytes
        expected = np.concatenate([[first], ends[:-1]])
        wrong = np.flatnonzero((part < 0) | (starts[chunk : chunk + _CHUNK] != expected))
        if len(wrong):
            raise DataError(
                f"{index} is damaged: the place of document {chunk + int(wrong[0]) + 1} is wrong; {_REMEDY}"
            )
        first = int(ends[-1])


def _check_borders(index: Path, borders: np.ndarray, sequences: int) -> None:
    """They rise from 0 to the number of sequences."""
    if len(borders) < 2 or borders[0] != 0 or borders[-1] != sequences or (np.diff(borders) < 0).any():
        raise DataError(f"{index} is damaged: its borders of documents do not rise from 0 to {sequences}; {_REMEDY}")

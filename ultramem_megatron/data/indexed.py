"""The header of a ``.idx`` file, and the check that ``.bin`` and ``.idx`` belong together. No torch."""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultramem_megatron.errors import DataError

# layout and type codes: megatron-core 0.16.1, indexed_dataset.py
_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, type code, sequences, documents + 1
_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2}
_REMEDY = "build it again with `ultramem data build`, or copy it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class PairInfo:
    """What a checked pair of files holds."""

    stem: Path
    documents: int
    tokens: int
    fingerprint: str
    """Of the document lengths; with a seed and a sequence length it determines the order of samples."""


def pair_exists(stem: Path) -> bool:
    """Whether any of the two files is there."""
    return stem.with_suffix(".bin").exists() or stem.with_suffix(".idx").exists()


def source_folders(folder: Path) -> list[str]:
    """Names of the sources of a data folder: its sub-folders with training text, sorted."""
    found = {path.parent.name for suffix in ("bin", "idx") for path in folder.glob(f"*/train.{suffix}")}
    return sorted(name for name in found if not name.startswith("."))  # a dot: a build under way


def check_pair(stem: Path) -> PairInfo:
    """Read ``stem.idx`` and hold the size of ``stem.bin`` against it.

    Raises:
        DataError: A file is missing, is no indexed dataset, or is shorter or longer than the index says.
    """
    binary, index = stem.with_suffix(".bin"), stem.with_suffix(".idx")
    for path in (binary, index):
        if not path.is_file():
            raise DataError(
                f"{path} does not exist; make it with `ultramem data build --out {stem.parent.parent}`, or all of "
                f"the folder with `ultramem data prepare --out {stem.parent.parent}`"
            )
    lengths, item_bytes = _read_lengths(index)
    tokens = int(lengths.sum(dtype=np.int64))
    if binary.stat().st_size != tokens * item_bytes:
        raise DataError(
            f"{binary} has {binary.stat().st_size} bytes, but its index {index.name} speaks of {tokens} tokens of "
            f"{item_bytes} bytes = {tokens * item_bytes}; the file was cut off or belongs to another index: {_REMEDY}"
        )
    digest = hashlib.sha256(np.ascontiguousarray(lengths).data).hexdigest()
    return PairInfo(stem=stem, documents=len(lengths), tokens=tokens, fingerprint=digest)


def _read_lengths(index: Path) -> tuple[np.ndarray, int]:
    size = index.stat().st_size
    with index.open("rb") as stream:
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size or header[: len(_MAGIC)] != _MAGIC:
        raise DataError(f"{index} is not the index of an indexed dataset; {_REMEDY}")
    _, version, code, sequences, borders = _HEADER.unpack(header)
    if version != 1 or code not in _ITEM_BYTES:
        raise DataError(f"{index} has version {version} and type code {code}, which are unknown; {_REMEDY}")
    # int32 lengths, int64 positions, int64 document borders
    expected = _HEADER.size + sequences * (4 + 8) + borders * 8
    if size != expected:
        raise DataError(f"{index} has {size} bytes, but its header asks for {expected}; it was cut off: {_REMEDY}")
    if not sequences:
        raise DataError(f"{index} holds no document; {_REMEDY}")
    lengths = np.memmap(index, dtype=np.int32, mode="r", offset=_HEADER.size, shape=(sequences,))
    return lengths, _ITEM_BYTES[code]

"""Documents of a JSONL file -> tokens, in this process or in several. Imports no torch: workers start fast."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ultramem_megatron.data.jsonl import read_texts
from ultramem_megatron.data.tokenizer import Tokenizer, open_tokenizer
from ultramem_megatron.errors import DataError

_DOCUMENTS_PER_CHUNK = 512
_UINT16_VALUES = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedChunk:
    """Some documents: their lengths, and their tokens on end. Each closes with the end-of-document token."""

    lengths: list[int]
    tokens: np.ndarray


@dataclass(frozen=True, slots=True)
class _Work:
    path: Path
    offsets: tuple[int, ...]
    folder: Path


class Encoder:
    """Encodes with the tokenizer of ``folder``, which must not change meanwhile.

    Args:
        folder: Holds ``tokenizer.json``.
        workers: Processes; all cores when None, this process when 1.
    """

    def __init__(self, folder: Path, workers: int | None) -> None:
        self._folder = folder
        self._workers = workers or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None
        self.tokenizer = open_tokenizer(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    @property
    def dtype(self) -> type[np.generic]:
        """uint16 when every token fits, else int32: the types that megatron-core chooses by."""
        return _dtype(self.tokenizer)

    def encode(self, path: Path, offsets: list[int]) -> Iterator[EncodedChunk]:
        """The documents at these byte offsets of ``path``, in this order, some at a time."""
        starts = range(0, len(offsets), _DOCUMENTS_PER_CHUNK)
        work = (_Work(path, tuple(offsets[start : start + _DOCUMENTS_PER_CHUNK]), self._folder) for start in starts)
        if self._workers == 1:
            return (_encode(one, self.tokenizer) for one in work)
        return self._encode_in_pool(work)

    def _encode_in_pool(self, work: Iterable[_Work]) -> Iterator[EncodedChunk]:
        if self._pool is None:
            # spawned, not forked: the tokenizers library has threads of its own
            self._pool = ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"))
        try:
            yield from self._pool.map(_encode_in_worker, work)
        except BrokenProcessPool:
            raise DataError(
                "a process of `ultramem data build` was killed, most likely for want of memory; use fewer --workers"
            ) from None


def _encode_in_worker(work: _Work) -> EncodedChunk:
    return _encode(work, _worker_tokenizer(work.folder))


@lru_cache(maxsize=1)
def _worker_tokenizer(folder: Path) -> Tokenizer:
    """Opened once a worker. A worker lives no longer than its ``Encoder``, so the file cannot be another one."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    return open_tokenizer(folder)


def _encode(work: _Work, tokenizer: Tokenizer) -> EncodedChunk:
    encoded = tokenizer.encode_batch(list(read_texts(work.path, work.offsets)))
    flat = np.fromiter((token for tokens in encoded for token in (*tokens, tokenizer.eod)), dtype=_dtype(tokenizer))
    return EncodedChunk(lengths=[len(tokens) + 1 for tokens in encoded], tokens=flat)


def _dtype(tokenizer: Tokenizer) -> type[np.generic]:
    return np.uint16 if tokenizer.vocab_size <= _UINT16_VALUES else np.int32

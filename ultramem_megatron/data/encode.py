"""Documents of a JSONL file -> tokens, in this process or in several. Imports no torch: workers start fast."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ultramem_megatron.data.jsonl import read_texts
from ultramem_megatron.data.text_files import TextFile
from ultramem_megatron.data.tokenizer import Tokenizer, open_tokenizer
from ultramem_megatron.errors import DataError

_DOCUMENTS_PER_CHUNK = 512
_CHUNKS_AHEAD = 3  # a worker
_UINT16_VALUES = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedChunk:
    """Some documents: their lengths, and their tokens on end. Each closes with the end-of-document token."""

    lengths: list[int]
    tokens: np.ndarray


@dataclass(frozen=True, slots=True)
class _Work:
    text: TextFile
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

    def encode(self, text: TextFile, offsets: Sequence[int]) -> Iterator[EncodedChunk]:
        """The documents at these byte offsets of ``text``, in this order, some at a time."""
        starts = range(0, len(offsets), _DOCUMENTS_PER_CHUNK)
        work = (_Work(text, tuple(offsets[start : start + _DOCUMENTS_PER_CHUNK]), self._folder) for start in starts)
        if self._workers == 1:
            return (_encode(one, self.tokenizer) for one in work)
        return self._encode_in_pool(work)

    def _encode_in_pool(self, work: Iterable[_Work]) -> Iterator[EncodedChunk]:
        """A few chunks ahead of the one that is asked for: all at once would not fit into memory."""
        if self._pool is None:
            # spawned, not forked: the tokenizers library has threads of its own
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, initializer=_begin_worker)
        underway: deque[Future[EncodedChunk]] = deque()
        try:
            for one in work:
                underway.append(self._pool.submit(_encode_in_worker, one))
                if len(underway) > _CHUNKS_AHEAD * self._workers:
                    yield underway.popleft().result()
            while underway:
                yield underway.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                "a process of `ultramem data build` was killed, most likely for want of memory; use fewer --workers"
            ) from None


def _begin_worker() -> None:
    """Ctrl-C is for the process that started this one, whose end, of whatever kind, is the end of this one, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers call this"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _encode_in_worker(work: _Work) -> EncodedChunk:
    return _encode(work, _worker_tokenizer(work.folder))


@lru_cache(maxsize=1)
def _worker_tokenizer(folder: Path) -> Tokenizer:
    """Opened once a worker. A worker lives no longer than its ``Encoder``, so the file cannot be another one."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    return open_tokenizer(folder)


def _encode(work: _Work, tokenizer: Tokenizer) -> EncodedChunk:
    encoded = tokenizer.encode_batch(list(read_texts(work.text, work.offsets)))
    flat = np.fromiter((token for tokens in encoded for token in (*tokens, tokenizer.eod)), dtype=_dtype(tokenizer))
    return EncodedChunk(lengths=[len(tokens) + 1 for tokens in encoded], tokens=flat)


def _dtype(tokenizer: Tokenizer) -> type[np.generic]:
    return np.uint16 if tokenizer.vocab_size <= _UINT16_VALUES else np.int32

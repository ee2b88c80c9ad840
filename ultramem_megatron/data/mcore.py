"""The parts of megatron-core 0.16.1 that ``data`` uses. No other file of ``data`` imports megatron."""

import logging
import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

with warnings.catch_warnings():
    # they name optional accelerators that data does not use; `ultramem doctor` reports those
    warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder, _IndexWriter
    from megatron.core.datasets.utils import Split

__all__ = ["EpochIndex", "GPTEpoch", "IndexedDataset", "PairWriter"]


@dataclass(frozen=True, slots=True)
class EpochIndex:
    """What makes one epoch of samples out of documents; the arrays that mcore calls by these names."""

    document_index: np.ndarray
    sample_index: np.ndarray
    shuffle_index: np.ndarray


@dataclass(frozen=True, slots=True)
class _TokenRange:
    """What GPTDataset reads of a tokenizer."""

    vocab_size: int
    eod: int
    pad: int = -1
    """No token has it: mcore zeroes and masks every pad token that it meets in the text."""
    unique_identifiers: dict[str, Any] = field(default_factory=dict)


class GPTEpoch(GPTDataset):
    """Exactly one epoch of a ``.bin``/``.idx`` pair: ``len`` samples of ``seq_length`` tokens, shuffled.

    A whole GPTDataset of many epochs orders its samples by how many were asked for; one that holds one epoch
    does not, so that the length of a run cannot leak into the order of its data.

    Args:
        documents: The pair. Several epochs share it.
        seq_length: Tokens of a sample; mcore reads one more for the labels.
        seed: Of the order of documents and of samples.
        vocab_size: Of the tokenizer.
        eod: Token that ends a document.
        index: A stored index of this very epoch, or None to build one.
    """

    def __init__(
        self,
        documents: IndexedDataset,
        *,
        seq_length: int,
        seed: int,
        vocab_size: int,
        eod: int,
        index: EpochIndex | None = None,
    ) -> None:
        config = GPTDatasetConfig(
            random_seed=seed,
            sequence_length=seq_length,
            tokenizer=_TokenRange(vocab_size, eod),
            blend=([documents.path_prefix], None),
            split="1",
            # empty, not None: mcore then neither stores the index nor lets rank 0 alone build it
            path_to_cache="",
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        self._stored = index
        numbers = np.arange(len(documents), dtype=np.int32)
        with _without_cache_warning():
            super().__init__(documents, documents.path_prefix, numbers, None, Split.train, config)

    def _build_document_sample_shuffle_indices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._stored is None:
            return super()._build_document_sample_shuffle_indices()
        return self._stored.document_index, self._stored.sample_index, self._stored.shuffle_index

    @property
    def index(self) -> EpochIndex:
        """The index, to be stored."""
        return EpochIndex(self.document_index, self.sample_index, self.shuffle_index)

    def sample(self, position: int) -> dict[str, Tensor]:
        """``tokens`` and ``labels``, int64 [seq_length]."""
        item = self[position]
        return {"tokens": item["tokens"], "labels": item["labels"]}


@contextmanager
def _without_cache_warning() -> Iterator[None]:
    """mcore warns at each build that it stores no index; ``index_cache.py`` does that instead."""
    logger = logging.getLogger("megatron.core.datasets.gpt_dataset")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def open_documents(stem: Path) -> IndexedDataset:
    """The pair ``stem.bin``, ``stem.idx``, memory-mapped. Check it first: mcore reads a short file as it is."""
    return IndexedDataset(str(stem), mmap=True)


class PairWriter(IndexedDatasetBuilder):
    """Writes one ``.bin`` and ``.idx``. mcore's keeps 100 bytes a document in memory; this one keeps 12.

    Args:
        stem: Of the two files.
        dtype: Of a token.
    """

    def __init__(self, stem: Path, dtype: type[np.generic]) -> None:
        super().__init__(str(stem.with_suffix(".bin")), dtype=dtype)
        self._stem = stem
        self.sequence_lengths, self.document_indices = array("i"), array("q", [0])

    @property
    def documents(self) -> int:
        """Written so far."""
        return len(self.sequence_lengths)

    def finish(self) -> None:
        """Close the ``.bin`` and write the ``.idx``."""
        self.data_file.close()
        with _PlainIndexWriter(str(self._stem.with_suffix(".idx")), self.dtype) as writer:
            writer.write(self.sequence_lengths, None, self.document_indices)


class _PlainIndexWriter(_IndexWriter):
    def _sequence_pointers(self, sequence_lengths: Sequence[int]) -> np.ndarray:
        ends = np.cumsum(sequence_lengths, dtype=np.int64) * np.dtype(self.dtype).itemsize
        return np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends

"""Several sources read as one, in fixed proportions."""

import hashlib

import numpy as np
from torch import Tensor

from ultramem_megatron.data.mcore import blend
from ultramem_megatron.data.token_source import TokenSource

_CHUNK_SAMPLES = 2**16


class BlendedSource(TokenSource):
    """Each sample comes from the source that is furthest behind its share.

    Args:
        sources: At least one. Their order matters: sort them by name.
        weights: Positive, one a source; only their ratios count.
        chunk_samples: Samples of the order that are kept in memory at a time.
    """

    def __init__(self, sources: list[TokenSource], weights: list[float], chunk_samples: int = _CHUNK_SAMPLES) -> None:
        assert len(sources) == len(weights) > 0
        self._sources = sources
        self._weights = np.array(weights, dtype=np.float64) / sum(weights)
        self._chunk_samples = chunk_samples
        self._chunk = -1
        self._source = np.empty(0, dtype=np.int16)
        self._number = np.empty(0, dtype=np.int64)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        source, number = self.locate(i)
        return self._sources[source][number]

    def locate(self, i: int) -> tuple[int, int]:
        """(source, number within that source) of sample ``i``."""
        chunk, place = divmod(i, self._chunk_samples)
        if chunk != self._chunk:
            self._load(chunk)
        return int(self._source[place]), int(self._number[place])

    def _load(self, chunk: int) -> None:
        """Keep one chunk. The greedy rule runs from sample 0, at some 10^8 samples a second and source."""
        start = chunk * self._chunk_samples
        source, number = blend(self._weights, start + self._chunk_samples)
        self._source, self._number = source[start:].copy(), number[start:].copy()
        self._chunk = chunk

    @property
    def fingerprint(self) -> str:
        parts = [f"{s.fingerprint}:{w!r}" for s, w in zip(self._sources, self._weights.tolist(), strict=True)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

"""Seeded tokens that need no files: counting sequences with noise, so that a loss has something to learn."""

import numpy as np
import torch
from torch import Tensor

from ultramem_megatron.data.identity import DataIdentity
from ultramem_megatron.data.token_source import TrainingSource

_LARGEST_STEP = 4
_ALPHABET = 256  # few enough to be learnt in tens of steps
_NOISE = 1 / 16


class SyntheticTokens(TrainingSource):
    """Sample i counts from a random start in steps of 1 to 4, modulo 256 (or the vocabulary, when smaller).

    One token in 16 is replaced by any token of the vocabulary. Sample i depends on (seed, stream, i) alone.

    Args:
        seq_length: Tokens of a sample.
        vocab_size: Tokens are below it.
        seed: Another seed, other samples.
        stream: Keeps training (0) and validation (1) apart.
    """

    def __init__(self, *, seq_length: int, vocab_size: int, seed: int, stream: int = 0) -> None:
        self._seq_length = seq_length
        self._vocab_size = vocab_size
        self._seed = seed
        self._stream = stream

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        random = np.random.default_rng((self._seed, self._stream, i))
        alphabet = min(self._vocab_size, _ALPHABET)
        count = self._seq_length + 1
        start, step = random.integers(alphabet), random.integers(1, _LARGEST_STEP + 1)
        tokens = (start + step * np.arange(count)) % alphabet
        noisy = random.random(count) < _NOISE
        text = torch.from_numpy(np.where(noisy, random.integers(self._vocab_size, size=count), tokens))
        return {"tokens": text[:-1].clone(), "labels": text[1:].clone()}

    @property
    def fingerprint(self) -> str:
        return f"synthetic-{self._seed}-{self._stream}-{self._seq_length}-{self._vocab_size}"

    @property
    def identity(self) -> DataIdentity:
        return DataIdentity(seed=self._seed, seq_length=self._seq_length)

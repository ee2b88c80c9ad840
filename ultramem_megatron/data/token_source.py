"""``TokenSource``: what training reads, whatever it is made of."""

from abc import ABC, abstractmethod

from torch import Tensor


class TokenSource(ABC):
    """An endless list of samples. Sample i is the same on every rank, in every run with the same settings."""

    @abstractmethod
    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Sample ``i`` >= 0: ``tokens`` and ``labels``, both int64 [seq]; ``labels[t]`` follows ``tokens[t]``."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the samples or their order would: data, seed, sequence length, weights."""

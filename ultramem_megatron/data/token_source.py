"""``TokenSource``: what training reads, whatever it is made of."""

from abc import ABC, abstractmethod

from torch import Tensor

from ultramem_megatron.data.identity import DataIdentity


class TokenSource(ABC):
    """An endless list of samples. Sample i is the same on every rank, in every run with the same settings."""

    @abstractmethod
    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Sample ``i`` >= 0: ``tokens`` and ``labels``, both int64 [seq]; ``labels[t]`` follows ``tokens[t]``."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the order of samples would: lengths of documents, seed, sequence length, weights. Says
        nothing of what they contain."""


class TrainingSource(TokenSource):
    """All that a run trains on."""

    @property
    @abstractmethod
    def identity(self) -> DataIdentity:
        """Changes when samples or their order would."""

    @property
    def unread(self) -> str:
        """What of the files no start has compared with its hash, for people; empty when all was."""
        return ""

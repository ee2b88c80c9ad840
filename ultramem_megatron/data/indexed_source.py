"""Samples of one ``.bin``/``.idx`` pair, epoch after epoch."""

import hashlib
from collections import OrderedDict

import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.data.index_cache import IndexCache
from ultramem_megatron.data.indexed import PairInfo, cache_folder
from ultramem_megatron.data.mcore import GPTEpoch, open_documents
from ultramem_megatron.data.token_source import TokenSource
from ultramem_megatron.errors import DataError

_EPOCHS_IN_MEMORY = 2  # at its end, an epoch and the next are read in turns


class IndexedSource(TokenSource):
    """Epoch e is one shuffled pass over all documents, in an order of its own, seeded by (seed, e).

    Args:
        info: The checked pair of files.
        seq_length: Tokens of a sample.
        seed: Of the order.
        vocab_size: Of the tokenizer.
        eod: Token that ends a document.

    Raises:
        DataError: The pair holds less than one sample.
    """

    def __init__(self, info: PairInfo, *, seq_length: int, seed: int, vocab_size: int, eod: int) -> None:
        if not holds_sample(info, seq_length):
            raise DataError(
                f"{info.stem}.bin holds {info.tokens} tokens, and a sample of model.seq_length = {seq_length} needs "
                f"{seq_length + 1} with its labels; add text or lower model.seq_length"
            )
        self.num_tokens = info.tokens
        self.samples_per_epoch = (info.tokens - 1) // seq_length
        self._seq_length, self._seed, self._vocab_size, self._eod = seq_length, seed, vocab_size, eod
        self._documents = open_documents(info.stem)
        self._fingerprint = hashlib.sha256(f"{info.fingerprint} {seed} {seq_length}".encode()).hexdigest()
        self._cache = IndexCache(cache_folder(info.stem) / f"{info.stem.name}-{self._fingerprint[:16]}")
        self._epochs: OrderedDict[int, GPTEpoch] = OrderedDict()

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        epoch, position = divmod(i, self.samples_per_epoch)
        return self._epoch(epoch).sample(position)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def build_first_epoch(self) -> None:
        """Have epoch 0 ready, and stored for the other ranks."""
        self._epoch(0)

    def _epoch(self, epoch: int) -> GPTEpoch:
        if epoch not in self._epochs:
            self._epochs[epoch] = self._open_epoch(epoch)
            while len(self._epochs) > _EPOCHS_IN_MEMORY:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _open_epoch(self, epoch: int) -> GPTEpoch:
        """From the cache, else built. No rank waits for another here: ranks meet an epoch at different times."""
        stored = self._cache.load(epoch, self.samples_per_epoch)
        samples = GPTEpoch(
            self._documents,
            seq_length=self._seq_length,
            seed=_epoch_seed(self._seed, epoch),
            vocab_size=self._vocab_size,
            eod=self._eod,
            index=stored,
        )
        assert len(samples) == self.samples_per_epoch, f"{len(samples)} samples, not {self.samples_per_epoch}"
        if stored is None and is_first_rank():
            self._cache.store(epoch, samples.index)
        return samples


def holds_sample(info: PairInfo, seq_length: int) -> bool:
    """Whether there are tokens enough for one sample and its labels."""
    return info.tokens > seq_length


def is_first_rank() -> bool:
    """Rank 0, or a process on its own."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _epoch_seed(seed: int, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    return int.from_bytes(digest[:4], "little")  # numpy's RandomState takes 32 bits

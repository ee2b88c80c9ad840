"""This rank's micro-batches of every optimizer step."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ultramem_megatron.data.token_source import TokenSource

Batch = dict[str, Tensor]
"""``tokens``, ``labels`` and ``position_ids``, int64 [micro batch, seq], on the CPU. Every label counts."""


SampleRange = tuple[int, int]
"""First sample, and the one after the last."""


def skip_over(start: int, size: int, skipped: Sequence[SampleRange]) -> int:
    """Where the next ``size`` samples begin, at ``start`` or after what is left out and would be touched."""
    for first, end in sorted(skipped):
        if first < start + size and start < end:
            start = end
    return start


class BatchSampler:
    """Iterates over optimizer steps, without end; each item is the list of this rank's micro-batches.

    A step takes the next ``global_batch_size`` samples. Micro-batch j of data-parallel rank r takes those from
    ``(j * dp_size + r) * micro_batch_size`` on, so that any layout sees the same samples in the same step.

    Args:
        source: The samples.
        global_batch_size: Samples of a step, a multiple of ``micro_batch_size * dp_size``.
        micro_batch_size: Samples of a forward pass.
        dp_rank: This data-parallel rank.
        dp_size: Data-parallel ranks.
        consumed_samples: Where to begin: samples that the run has trained on before.
        skipped: Samples that are left out, with the rest of the batch that they would begin in.
    """

    def __init__(
        self,
        source: TokenSource,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int = 0,
        dp_size: int = 1,
        consumed_samples: int = 0,
        skipped: Sequence[SampleRange] = (),
    ) -> None:
        assert 0 <= dp_rank < dp_size
        assert global_batch_size % (micro_batch_size * dp_size) == 0  # RunConfig.check_world_size saw to it
        self._source = source
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        self._skipped = tuple(skipped)
        self.consumed_samples = consumed_samples
        """Samples of all ranks up to and including the step that was yielded last."""

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            start = skip_over(self.consumed_samples, self._global_batch_size, self._skipped)
            self.consumed_samples = start + self._global_batch_size
            yield [self._stack(first) for first in self._micro_batch_starts(start)]

    def _micro_batch_starts(self, start: int) -> range:
        first = start + self._dp_rank * self._micro_batch_size
        return range(first, start + self._global_batch_size, self._dp_size * self._micro_batch_size)

    def _stack(self, first: int) -> Batch:
        samples = [self._source[i] for i in range(first, first + self._micro_batch_size)]
        tokens = torch.stack([sample["tokens"] for sample in samples])
        labels = torch.stack([sample["labels"] for sample in samples])
        # positions run through a sample, documents or not, and the end of a document is learnt like any token
        positions = torch.arange(tokens.shape[1]).expand_as(tokens).contiguous()
        return {
            "tokens": tokens,
            "labels": labels,
            "position_ids": positions,
        }

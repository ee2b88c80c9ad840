"""The memory lane: for a span a:b, a memory layer reads at block a and its result is added after block b.

What lies between is dense compute, and the lookup's collectives run beside it. A lookup waits for others several
times (``ValuePartition.waits``). ``start`` begins it; ``advance``, called after each stretch of dense compute (an
attention or an MLP), takes it on by one wait; ``finish`` takes the result. The last wait is for what weighs most, rows
or sums: it is left until the result is needed. Where there are fewer stretches than waits, the first ones, for sizes
and row numbers, are waited for at once. Backward, the same stretches hide the way back (``parallel/exchange.py``).

A span may end on a later pipeline stage: the message to the next stage then carries the result behind the hidden
state (``pack`` and ``unpack``); the lookup ends with its own stage.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ultramem_megatron.config.memory import Span
from ultramem_megatron.memory.layer import MemoryLayer
from ultramem_megatron.parallel.underway import Underway

# Letters: s tokens of a sequence on this rank, b sequences, D hidden width.


class MemoryLane(nn.Module):
    """The memory layers of one model chunk, and the result that is under way.

    Spans do not overlap, so there is one at most. It lives from block a to block b, or to the end of the chunk, of one
    forward pass: nothing is left between passes.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        blocks: range,
        layers: dict[int, MemoryLayer],
        *,
        overlap: bool = True,
        recompute: bool = False,
    ) -> None:
        """Args:
        spans: Of the whole model.
        blocks: Of this chunk, counted from 1.
        layers: The memory layers that read at one of them, by the number of their span, counted from 0.
        overlap: Whether lookups run beside dense compute, or to their end where they begin. The results are the same.
        recompute: Whether a block is one stretch of compute, at whose end a lookup begins.
        """
        super().__init__()
        self.layers = nn.ModuleDict({str(index): layer for index, layer in layers.items()})
        self.overlap, self._recompute = overlap, recompute
        self._reads = {spans[index].read: layer for index, layer in layers.items()}
        self._ends = {span.read: min(span.add, blocks.stop - 1) for span in spans}
        self._adds = {span.add for span in spans if span.add in blocks}
        self._receives = any(span.read < blocks.start <= span.add for span in spans)
        self._sends = any(span.read < blocks.stop <= span.add for span in spans)
        self._pending: Underway[Tensor] | Tensor | None = None
        self._advances = 0

    def numbered_layers(self) -> list[tuple[int, MemoryLayer]]:
        """The layers with their span's number in the whole model."""
        return [(int(index), layer) for index, layer in self.layers.items() if isinstance(layer, MemoryLayer)]

    def unpack(self, message: Tensor | None) -> Tensor | None:
        """Begin a forward pass with what the stage before has sent.

        Args:
            message: [s, b, D], or [2 s, b, D] where a span crosses the boundary; None on the first stage.

        Returns:
            The hidden state, [s, b, D].
        """
        if not self._receives:
            return message
        assert message is not None
        hidden_sbD, self._pending = message.chunk(2)
        return hidden_sbD

    def reads(self, block: int) -> bool:
        """Whether a span reads at block ``block``, counted from 1."""
        return block in self._reads

    def start(self, block: int, normed_sbD: Tensor) -> None:
        """Block ``block`` (counted from 1) has its FFN input: begin the lookup of a span that reads here."""
        if not self.reads(block):
            return
        layer, stretches = self._reads[block], self._stretches(block)
        lookup = Underway(layer.look_up(normed_sbD))
        for _ in range(layer.waits - stretches):
            lookup.advance()
        self._pending = lookup
        self._advances = min(layer.waits, stretches) - 1

    def advance(self) -> None:
        """A stretch of dense compute has been given out: take on what is under way."""
        if isinstance(self._pending, Underway) and self._advances > 0:
            self._pending.advance()
            self._advances -= 1

    def _stretches(self, read: int) -> int:
        """Stretches of dense compute between where a lookup begins and where its result is taken."""
        if not self.overlap:
            return 0
        blocks = self._ends[read] - read
        return blocks if self._recompute else 1 + 2 * blocks  # the MLP of the first; attention and MLP

    def finish(self, block: int, hidden_sbD: Tensor) -> Tensor:
        """Block ``block`` is done: add the result of a span that ends here."""
        return hidden_sbD + self._take() if block in self._adds else hidden_sbD

    def pack(self, output: Tensor) -> Tensor:
        """End a forward pass: what the next stage is sent.

        Args:
            output: Of the chunk: the hidden state [s, b, D], or on the last stage anything.

        Returns:
            ``output``, and behind it the result of a span that ends on a later stage. A tensor of its own, not a view:
            once it is sent, megatron-core frees its data.
        """
        if not self._sends:
            return output
        pending_sbD = self._take()
        assert pending_sbD.dtype == output.dtype, "the next stage expects one type"
        return torch.cat((output, pending_sbD))

    def _take(self) -> Tensor:
        pending, self._pending = self._pending, None
        assert pending is not None, "no span is under way"
        return pending if isinstance(pending, Tensor) else pending.finish()

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Keys carry the span's number in the whole model, whatever stage it is on."""
        state: dict[str, Any] = {}
        for index, layer in self.numbered_layers():
            state |= layer.sharded_state_dict(f"{prefix}layers.{index}.", sharded_offsets, metadata)
        return state

"""The memory lane: for a span a:b, a memory layer reads at block a and its result is added after block b.

What lies between is dense compute; the lookup and its collectives may run beside it (``start`` and ``finish``).
"""

from typing import Any

from torch import Tensor, nn

from ultramem_megatron.config.memory import Span
from ultramem_megatron.memory.layer import MemoryLayer


class MemoryLane(nn.Module):
    """The memory layers of one model chunk and the results that are under way.

    A result lives from block a to block b of one forward pass, so nothing is left between passes.
    """

    def __init__(self, layers: dict[int, tuple[Span, MemoryLayer]]) -> None:
        """``layers``: by the span's number in the whole model, counted from 0."""
        super().__init__()
        self.layers = nn.ModuleDict({str(index): layer for index, (_, layer) in layers.items()})
        self._reads = {span.read: str(index) for index, (span, _) in layers.items()}
        self._adds = {span.add: str(index) for index, (span, _) in layers.items()}
        self._pending: dict[str, Tensor] = {}

    def numbered_layers(self) -> list[tuple[int, MemoryLayer]]:
        """The layers with their span's number in the whole model."""
        return [(int(index), layer) for index, layer in self.layers.items() if isinstance(layer, MemoryLayer)]

    def start(self, block: int, normed_sbD: Tensor) -> None:
        """Block ``block`` (counted from 1) has its FFN input: begin the lookup of a span that reads here."""
        if block in self._reads:
            index = self._reads[block]
            self._pending[index] = self.layers[index](normed_sbD)

    def finish(self, block: int, hidden_sbD: Tensor) -> Tensor:
        """Block ``block`` is done: add the result of a span that ends here."""
        if block not in self._adds:
            return hidden_sbD
        return hidden_sbD + self._pending.pop(self._adds[block])

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Keys carry the span's number in the whole model, whatever stage it is on."""
        state: dict[str, Any] = {}
        for index, layer in self.numbered_layers():
            state |= layer.sharded_state_dict(f"{prefix}layers.{index}.", sharded_offsets, metadata)
        return state

"""A process group with a meter: what a partition talks through."""

from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor


@dataclass(slots=True)
class Traffic:
    """Payload bytes that this rank sent to other ranks. What a rank keeps for itself does not count."""

    forward_bytes: int = 0
    backward_bytes: int = 0

    def reset(self) -> None:
        """Start counting anew."""
        self.forward_bytes = self.backward_bytes = 0


@dataclass(frozen=True, slots=True)
class Channel:
    """A group and the meter of what is sent over it."""

    group: dist.ProcessGroup
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def size(self) -> int:
        """Ranks of the group."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """This process's place in the group."""
        return self.group.rank()

    def count(self, elements: int, like: Tensor, *, backward: bool) -> None:
        """Add ``elements`` of the type of ``like`` to the meter."""
        sent = elements * like.element_size()
        if backward:
            self.traffic.backward_bytes += sent
        else:
            self.traffic.forward_bytes += sent

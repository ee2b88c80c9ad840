"""A process group with a meter: what a partition talks through."""

from dataclasses import dataclass, field, replace

import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.parallel.timeline import Timeline

INSIDE, ACROSS = "inside ", "across "
"""Places of messages inside a node, and between nodes."""


@dataclass(slots=True)
class Traffic:
    """What this rank sent to other ranks, and how much the ranks made it do."""

    forward_bytes: int = 0
    """Payload. What a rank keeps for itself does not count."""
    backward_bytes: int = 0
    """Payload of the backward pass."""
    served_requests: int = 0
    """Requests that this rank answered as the owner of rows, its own included. Only where rows have one owner each, or
    one node: elsewhere the load is even by construction."""

    def reset(self) -> None:
        """Start counting anew."""
        self.forward_bytes = self.backward_bytes = self.served_requests = 0


@dataclass(frozen=True, slots=True)
class NodeGroups:
    """A group in parts: its ranks, in their order, as consecutive nodes of equal size."""

    inside: dist.ProcessGroup
    """The ranks of this node."""
    across: dist.ProcessGroup
    """Of each node the rank with this one's place in it, in the order of the nodes."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A group, the meter of what is sent over it, and who notes when."""

    group: dist.ProcessGroup
    traffic: Traffic = field(default_factory=Traffic)
    timeline: Timeline = field(default_factory=Timeline)
    """Notes nothing, but in steps that are reported or profiled."""
    nodes: NodeGroups | None = None
    """The same ranks by node, for a partition that treats nodes apart."""
    place: str = ""
    """Before the name of each message, where a partition sends the like over several channels; see ``named``."""

    @property
    def inside(self) -> "Channel":
        """To the ranks of this node, with the same meter."""
        return replace(self, group=self._nodes.inside, nodes=None, place=INSIDE)

    @property
    def across(self) -> "Channel":
        """To the ranks of equal place in their nodes, with the same meter."""
        return replace(self, group=self._nodes.across, nodes=None, place=ACROSS)

    def named(self, message: str) -> str:
        """What a timeline calls a message of this channel."""
        return f"{self.place}{message}"

    @property
    def _nodes(self) -> NodeGroups:
        assert self.nodes is not None, "a plan that splits tables as a grid names the size of a node"
        return self.nodes

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

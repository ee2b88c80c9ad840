"""Collectives that run beside other work: begun, and finished later; so is their reverse in the backward pass.

Two nodes of autograd's graph stand for an exchange, one where it was begun and one where it was finished. Backward, the
second begins the reverse, and the first waits for it. Autograd takes the node that was made last among those that are
ready; so what was computed between the two forward is computed between them backward, while the reverse travels.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.parallel.channel import Channel


@dataclass(frozen=True, slots=True)
class Sent:
    """A collective that was begun."""

    work: dist.Work
    in_use: tuple[Tensor, ...]
    """What it reads and writes; must neither change nor go before it is done."""
    received: Callable[[], Tensor]
    """What it brought; called once it is done."""


Send = Callable[[Tensor], Sent]
"""Begins a collective. All ranks of the group must call it, in the same order as their other collectives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What an exchange does, forward and backward."""

    name: str
    """For people who look at a profile."""
    channel: Channel
    forward: Send
    backward: Send


class Exchange:
    """One exchange under way. ``await`` it, or ``finish`` it where nothing can be done meanwhile."""

    def __init__(self, x: Tensor, kind: Kind) -> None:
        """Begin it. ``x``: what the forward collective sends."""
        self._transfer = _Transfer(kind)
        self._begun: Tensor = _Begin.apply(x, self._transfer)

    def finish(self) -> Tensor:
        """Wait; what came. On a GPU only the stream waits, never the host."""
        received: Tensor = _Finish.apply(self._begun, self._transfer)
        return received

    def __await__(self) -> Generator[None, None, Tensor]:
        yield
        return self.finish()


class Together:
    """Several exchanges under way, awaited as one."""

    def __init__(self, *exchanges: Exchange) -> None:
        self.exchanges = exchanges

    def __await__(self) -> Generator[None, None, list[Tensor]]:
        yield
        return [exchange.finish() for exchange in self.exchanges]


class _Transfer:
    """What travels at the moment, in one direction or the other. Holds the buffers until they have arrived."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._sent: tuple[Sent, Any] | None = None

    def begin(self, x: Tensor, *, backward: bool) -> None:
        assert self._sent is None, "one direction at a time"
        channel = self.kind.channel
        timeline = channel.timeline
        mark = timeline.start(channel.named(self.kind.name), backward=backward)
        sent = (self.kind.backward if backward else self.kind.forward)(x)
        timeline.begun(mark, sent.work)
        self._sent = sent, mark

    def finish(self) -> Tensor:
        assert self._sent is not None, "finished before it was begun, or twice"
        (sent, mark), self._sent = self._sent, None
        self.kind.channel.timeline.wait(mark, sent.work.wait)
        return sent.received()


class _Begin(torch.autograd.Function):
    """x -> a token without elements, for autograd to know the order by; the data are in the transfer."""

    @staticmethod
    def forward(ctx, x: Tensor, transfer: _Transfer) -> Tensor:
        ctx.transfer = transfer
        transfer.begin(x, backward=False)
        return x.new_empty(0)

    @staticmethod
    def backward(ctx, token: Tensor):
        return ctx.transfer.finish(), None


class _Finish(torch.autograd.Function):
    """The token -> what came."""

    @staticmethod
    def forward(ctx, token: Tensor, transfer: _Transfer) -> Tensor:
        ctx.transfer = transfer
        return transfer.finish()

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.transfer.begin(grad, backward=True)
        return grad.new_empty(0), None

"""Numbers that a collective brings and the host must know: how much it will receive next."""

from collections.abc import Generator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.parallel.channel import Channel

# Letters: P ranks of the group.


class SizesUnderWay:
    """How many items this rank sends to each and gets from each: under way, and on to the host."""

    def __init__(self, sizes_P: Tensor, channel: Channel) -> None:
        """Begin. Collective over the channel's group.

        Args:
            sizes_P: int64 [P, ...], item p goes to rank p.
            channel: The ranks.
        """
        sizes_P = sizes_P.contiguous()
        received_P = torch.empty_like(sizes_P)
        self._timeline = channel.timeline
        self._mark = self._timeline.start(channel.named("sizes"), backward=False)
        work = dist.all_to_all_single(received_P, sizes_P, group=channel.group, async_op=True)
        assert work is not None
        channel.count((channel.size - 1) * sizes_P[0].numel(), sizes_P, backward=False)
        self._timeline.begun(self._mark, work)
        self._copy = (_FromDevice if sizes_P.is_cuda else _OnHost)(work, (sizes_P, received_P))

    def finish(self) -> tuple[list[Any], list[Any]]:
        """Wait. Sent and received sizes by rank, nested as ``sizes_P`` was."""
        self._timeline.wait(self._mark, self._copy.wait)
        sent_P, received_P = self._copy.numbers
        return sent_P.tolist(), received_P.tolist()

    def __await__(self) -> Generator[None, None, tuple[list[Any], list[Any]]]:
        yield
        return self.finish()


class _OnHost:
    """Where the numbers are on the host when the collective is done."""

    def __init__(self, work: dist.Work, numbers: Sequence[Tensor]) -> None:
        self.numbers, self._work = numbers, work

    def wait(self) -> None:
        self._work.wait()


class _FromDevice:
    """Copies on a stream of their own, so that the host waits for them alone.

    Read from the main stream they would come after all that the device was given to do since; it would then run dry.
    """

    def __init__(self, work: dist.Work, numbers: Sequence[Tensor]) -> None:
        self._kept = numbers  # until the copies are made: no other stream may get their memory
        stream = torch.cuda.Stream(numbers[0].device)
        with torch.cuda.stream(stream):
            work.wait()  # the stream waits, not the host
            self.numbers = [number.to("cpu", non_blocking=True) for number in numbers]
        self._done = stream.record_event()

    def wait(self) -> None:
        self._done.synchronize()

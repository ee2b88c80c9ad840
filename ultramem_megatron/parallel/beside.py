"""Work that a GPU does beside its main stream, on a stream of its own. On a CPU it is done where it stands."""

from functools import cache
from types import TracebackType

import torch
from torch import Tensor


class Beside:
    """``with Beside(given) as work: made = ...``, and ``work.join(made)`` before ``made`` is used.

    The work begins when the main stream has made what is given; whoever joins lets the stream wait, never the host.
    """

    def __init__(self, *given: Tensor) -> None:
        """``given``: all that the work reads, on one device."""
        self._given = given
        self._device = given[0].device if given[0].is_cuda else None
        self._entered: torch.cuda.StreamContext | None = None
        self._done: torch.cuda.Event | None = None

    def __enter__(self) -> "Beside":
        if self._device is not None:
            stream = _side_stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))
            for tensor in self._given:
                tensor.record_stream(stream)
            self._entered = torch.cuda.stream(stream)
            self._entered.__enter__()
        self._given = ()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._entered is not None:
            self._done = torch.cuda.current_stream(self._device).record_event()
            self._entered.__exit__(kind, error, trace)
            self._entered = None

    def join(self, *made: Tensor) -> None:
        """From here on the current stream may use ``made``. May be called again, by the same or another stream."""
        if self._done is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._done)
            for tensor in made:
                tensor.record_stream(stream)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: torch's allocator keeps the memory of streams apart, and each new one would have its own."""
    return torch.cuda.Stream(device)

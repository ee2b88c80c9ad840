"""Ending early, on a signal: all ranks stop after the same step."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

from ultramem_megatron.training.state import TrainState

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""SIGTERM: preemption or the scheduler's end. SIGUSR1: its early warning (``sbatch --signal``). SIGINT: Ctrl-C."""
_STOP_AFTER = 1
"""As the cause: ``training.stop_after``; other causes are numbers of signals."""


class StopRequest:
    """Remembers a stop signal; the loop asks between steps."""

    def __init__(self) -> None:
        self._received = 0
        self._cause = 0
        self.is_listening = False

    def listen(self) -> None:
        """Take stop signals as a request from now on; for the main thread."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)
        self.is_listening = True

    def is_requested(self, state: TrainState) -> bool:
        """Whether any rank got a signal, or ``training.stop_after`` is reached. Collective over the world."""
        mine = self._received
        if not mine and 0 < state.config.training.stop_after <= state.step:
            mine = _STOP_AFTER
        cause = torch.tensor([mine], device=state.groups.device)
        dist.all_reduce(cause, op=dist.ReduceOp.MAX)
        self._cause = int(cause.item())
        return bool(self._cause)

    @property
    def cause(self) -> str:
        """Why all ranks were asked to stop, the same on each; "" as long as none was."""
        if self._cause == _STOP_AFTER:
            return "training.stop_after"
        return signal.Signals(self._cause).name if self._cause else ""

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = number

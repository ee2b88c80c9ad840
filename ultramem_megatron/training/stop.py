"""Ending early, on a signal: all ranks stop after the same step."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

from ultramem_megatron.training.state import TrainState

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM: preemption or the scheduler's end. SIGUSR1: its early warning (``sbatch --signal``)."""


class StopRequest:
    """Remembers a stop signal; the loop asks between steps."""

    def __init__(self) -> None:
        self._received = False

    def listen(self) -> None:
        """Take SIGTERM and SIGUSR1 as a request from now on; for the main thread."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def is_requested(self, state: TrainState) -> bool:
        """Whether any rank got a signal, or ``training.stop_after`` is reached. Collective over the world."""
        mine = self._received or 0 < state.config.training.stop_after <= state.step
        flag = torch.tensor([int(mine)], device=state.groups.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = True

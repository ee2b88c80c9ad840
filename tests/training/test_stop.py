"""A signal to one rank stops all of them after the same step."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.training.stop import StopRequest


def at(step: int, stop_after: int = 0) -> Any:
    training = SimpleNamespace(stop_after=stop_after)
    groups = SimpleNamespace(device=torch.device("cpu"))
    return SimpleNamespace(step=step, config=SimpleNamespace(training=training), groups=groups)


def requests(number: signal.Signals, receiver: int) -> list[bool | str]:
    stop = StopRequest()
    stop.listen()
    answers = [stop.is_requested(at(1))]
    if dist.get_rank() == receiver:
        os.kill(os.getpid(), number)
    return [*answers, stop.is_requested(at(2)), stop.is_requested(at(3)), stop.cause]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("receiver", [0, 2])
def test_all_ranks_hear_of_it(number: signal.Signals, receiver: int) -> None:
    assert run_distributed(3, requests, number, receiver) == [[False, True, True, number.name]] * 3


def test_a_chosen_step() -> None:
    def ask() -> list[bool | str]:
        stop = StopRequest()
        return [*(stop.is_requested(at(step, stop_after=5)) for step in (0, 4, 5, 6)), stop.cause]

    assert run_distributed(2, ask) == [[False, False, True, True, "training.stop_after"]] * 2


def test_signals_act_as_before_until_it_listens() -> None:
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1))
    StopRequest()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before

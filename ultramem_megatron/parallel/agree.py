"""One rank finds out, all ranks know."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

Answer = TypeVar("Answer")


def any_rank(mine: bool, device: torch.device) -> bool:
    """Whether it is so on any rank. Collective over the world."""
    flag = torch.tensor([int(mine)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def on_first_rank(find: Callable[[], Answer]) -> Answer:
    """``find()`` as rank 0 sees it, on every rank; what it raises is raised on every rank. Collective over the world.

    For what ranks must not judge for themselves: files that appear at different times on different machines, memory
    that differs from one machine to the next.
    """
    answer: list[tuple[Answer | None, Exception | None]] = [(None, None)]
    if dist.get_rank() == 0:
        try:
            answer = [(find(), None)]
        except Exception as error:
            answer = [(None, error)]
    dist.broadcast_object_list(answer)
    found, failure = answer[0]
    if failure is not None:
        raise failure
    return found  # type: ignore[return-value]


def on_all_ranks(mine: bool, device: torch.device) -> bool:
    """Whether ``mine`` is true on every rank. Collective over the world.

    Args:
        mine: As this rank sees it.
        device: Where the backend of the world reduces.
    """
    flag = torch.tensor([int(mine)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())

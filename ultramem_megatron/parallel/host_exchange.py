"""Sums and gathers of whole gradient and weight buffers on gloo, block by block.

gloo copies what it reduces or gathers, and torch coalesces the calls of megatron-core's DDP into one: for a value table
as much memory again as its gradient, also in a group of one rank, where there is nothing to send.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _coalescing_manager

EXCHANGED_ELEMENTS = 2**21
"""Of a buffer at a time: 8 MiB in fp32, and as much for gloo."""


def coalesced(group: dist.ProcessGroup, async_ops: bool = False) -> AbstractContextManager[Any]:
    """Instead of torch's ``_coalescing_manager``, which would collect the blocks and send them as one."""
    return _coalescing_manager(group, async_ops=async_ops) if async_ops else nullcontext()


def reduce_scatter(output: Tensor, source: Tensor, op: Any, group: dist.ProcessGroup, async_op: bool) -> Any:
    """``dist.reduce_scatter_tensor``; ``output`` may be this rank's part of ``source``. Collective over ``group``."""
    if async_op:
        return dist.reduce_scatter_tensor(output, source, op=op, group=group, async_op=True)
    parts_PN = source.view(group.size(), -1)
    if group.size() == 1:
        return _copy(output, parts_PN[0])
    for block in _blocks(parts_PN):
        sum_B = torch.empty_like(output[block])
        dist.reduce_scatter_tensor(sum_B, parts_PN[:, block].reshape(-1), op=op, group=group)
        output[block].copy_(sum_B)
    return None


def all_gather(output: Tensor, own: Tensor, group: dist.ProcessGroup, async_op: bool) -> Any:
    """``dist.all_gather_into_tensor``; ``own`` may be this rank's part of ``output``. Collective over ``group``."""
    if async_op:
        return dist.all_gather_into_tensor(output, own, group=group, async_op=True)
    parts_PN = output.view(group.size(), -1)
    if group.size() == 1:
        return _copy(parts_PN[0], own)
    for block in _blocks(parts_PN):
        gathered_PB = torch.empty_like(parts_PN[:, block])
        dist.all_gather_into_tensor(gathered_PB.view(-1), own[block], group=group)
        parts_PN[:, block] = gathered_PB
    return None


def _copy(target: Tensor, source: Tensor) -> None:
    if target.data_ptr() != source.data_ptr():
        target.copy_(source)


def _blocks(parts_PN: Tensor) -> Iterator[slice]:
    size = max(1, EXCHANGED_ELEMENTS // parts_PN.shape[0])
    for start in range(0, parts_PN.shape[1], size):
        yield slice(start, min(start + size, parts_PN.shape[1]))

"""One process of a run: its device, its backend, its place among the others."""

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessPlace:
    """Where a process stands; found out by the launcher, never guessed here."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    rendezvous: str
    """``tcp://host:port`` or ``file:///path``, the same on every rank."""


def start_process(place: ProcessPlace, *, timeout_seconds: float = 600.0) -> torch.device:
    """Choose the device, make megatron-core usable on it, and meet the other ranks.

    Returns:
        The device: ``cuda:<local rank>`` where CUDA exists, else ``cpu``.
    """
    if torch.cuda.is_available():
        # a scheduler may show each process only its own GPU
        index = place.local_rank if torch.cuda.device_count() > 1 else 0
        device, backend = torch.device("cuda", index), "nccl"
        torch.cuda.set_device(device)
    else:
        from ultramem_megatron.parallel import cpu_seam  # never loaded on a CUDA machine

        cpu_seam.install()
        device, backend = torch.device("cpu"), "gloo"
        torch.set_num_threads(max(1, _usable_cores() // place.local_world_size))
    dist.init_process_group(
        backend,
        init_method=place.rendezvous,
        rank=place.rank,
        world_size=place.world_size,
        timeout=datetime.timedelta(seconds=timeout_seconds),
    )
    return device


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0))

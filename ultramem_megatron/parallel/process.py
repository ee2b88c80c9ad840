"""One process of a run: its device, its backend, its place among the others."""

import datetime
import errno
import ipaddress
import os
import socket
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ultramem_megatron.errors import LaunchError, MeetingError

ALONE = "alone"
"""Rendezvous of a lone process, which needs no place for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessPlace:
    """Where a process stands; found out by the launcher, never guessed here."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    rendezvous: str
    """``tcp://host:port``, ``file:///path`` or ``env://`` (MASTER_ADDR and MASTER_PORT), the same on every rank; or
    ``ALONE``."""


def start_process(place: ProcessPlace, *, timeout_seconds: float = 600.0, deterministic: bool = False) -> torch.device:
    """Choose the device, make megatron-core usable on it, and meet the other ranks.

    Args:
        place: Where this process stands.
        timeout_seconds: To wait for the others, and for each collective later.
        deterministic: See ``training.deterministic``.

    Raises:
        LaunchError: There are fewer GPUs than processes, or rank 0 can never listen where the others look for it.
        MeetingError: The port is in use, or the ranks did not find each other within ``timeout_seconds``.

    Returns:
        The device: ``cuda:<local rank>`` where CUDA exists, else ``cpu``.
    """
    # megatron-core says at import what it lacks; `ultramem doctor` says it once, and what is used instead
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\.")
    if deterministic:
        fix_orders_of_sums()
    device = choose_device(place)
    if device.type == "cpu":
        from ultramem_megatron.parallel import cpu_seam  # never loaded on a CUDA machine

        cpu_seam.install()
    from ultramem_megatron.parallel import mcore_repairs  # imports megatron-core, which reads what was set up above

    mcore_repairs.install()
    meet(place, device, timeout_seconds=timeout_seconds)
    return device


def fix_orders_of_sums() -> None:
    """Of all sums of this process, before it uses CUDA. What has no such order raises where it is called."""
    # cuBLAS keeps to one only with a workspace of its own, NCCL only without sums in the switch
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "^NVLS")
    # torch would couple this to it: every tensor that is not filled at once, filled for nothing
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_deterministic_debug_mode("error")


def emulates_bf16(device: torch.device) -> bool:
    """Whether products of bf16 matrices lack instructions on a device: fifty times as slow as fp32 on an AMD EPYC with
    AVX2 (512 x 512, one thread, 198 and 4.2 ms, torch 2.13, 2026-11-30)."""
    return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def choose_device(place: ProcessPlace) -> torch.device:
    """``cuda:<local rank>`` where CUDA exists, else ``cpu``. Megatron-core is not touched.

    Raises:
        LaunchError: There are fewer GPUs than processes.
    """
    return _use_cuda(place) if torch.cuda.is_available() else _use_cpu(place)


def meet(place: ProcessPlace, device: torch.device, *, timeout_seconds: float = 600.0) -> None:
    """Join the other ranks, over the backend of ``device``. Collective over the world.

    Raises:
        LaunchError: Rank 0 can never listen where the others look for it.
        MeetingError: The port is in use, or the ranks did not find each other.
    """
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=place.rank,
            world_size=place.world_size,
            timeout=datetime.timedelta(seconds=timeout_seconds),
            **_meeting_point(place, timeout_seconds),
        )
    except MeetingError:
        raise
    except RuntimeError as error:  # of torch's store, of gloo or of nccl, each with classes and words of its own
        raise MeetingError(_not_met(place, error)) from error


def _not_met(place: ProcessPlace, error: RuntimeError) -> str:
    reason = str(error).strip().partition("\n")[0].removesuffix(".")
    if "EADDRINUSE" in reason:
        return _port_in_use(place.rank, _address(place))
    return (
        f"rank {place.rank} of {place.world_size} did not meet the others at {_address(place)}: {reason}; the log of "
        "the rank that failed first says why. If there is none, look whether all ranks were started, and whether "
        "their machines reach each other there (name resolution, firewall)"
    )


def _port_in_use(rank: int, address: str) -> str:
    return (
        f"rank {rank} cannot listen on {address} for the other ranks: {os.strerror(errno.EADDRINUSE)}; a job of Slurm "
        "takes another port when it starts again; elsewhere set MASTER_PORT to a free one, the same for all ranks"
    )


def _address(place: ProcessPlace) -> str:
    if place.rendezvous == "env://":
        return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return place.rendezvous.removeprefix("tcp://")


def _meeting_point(place: ProcessPlace, timeout_seconds: float) -> dict[str, Any]:
    """Arguments of ``init_process_group`` that say where the ranks meet."""
    if place.rendezvous == ALONE:
        return {"store": dist.HashStore()}
    if not place.rendezvous.startswith("tcp://"):
        return {"init_method": place.rendezvous}
    host, _, port = place.rendezvous.removeprefix("tcp://").rpartition(":")
    store = dist.TCPStore(
        host,
        int(port),
        place.world_size,
        is_master=place.rank == 0,
        timeout=datetime.timedelta(seconds=timeout_seconds),
        master_listen_fd=_listen(host, int(port)) if place.rank == 0 else None,
    )
    return {"store": dist.PrefixStore("ultramem", store)}


def _listen(host: str, port: int) -> int:
    """A socket of rank 0 for the others. PyTorch's own would listen on every network of the machine.

    A name may mean loopback on its own machine alone (Debian writes that into /etc/hosts); the others know another
    address by it, so then there is no choice.
    """
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
        is_name = host != address
        everywhere = is_name and host != "localhost" and ipaddress.ip_address(address).is_loopback
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        return socket.create_server(("" if everywhere else str(address), port), family=family, backlog=4096).detach()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise MeetingError(_port_in_use(0, f"{host}:{port}")) from None
        raise LaunchError(
            f"rank 0 cannot listen on {host}:{port} for the other ranks: {error.strerror or error}; set MASTER_ADDR to "
            "an address of its machine and MASTER_PORT to a free port, the same for all ranks"
        ) from None


def _use_cuda(place: ProcessPlace) -> torch.device:
    # a scheduler may show each process only its own GPU; --local shows all of them to each
    seen, needed = torch.cuda.device_count(), place.local_world_size
    if seen < needed and (seen > 1 or place.rendezvous == ALONE or place.rendezvous.startswith("file://")):
        raise LaunchError(
            f"{needed} processes on this machine need a GPU each, but torch sees {seen}; start {seen}, or train on the "
            "CPU with CUDA_VISIBLE_DEVICES= before the command"
        )
    device = torch.device("cuda", place.local_rank if seen > 1 else 0)
    torch.cuda.set_device(device)
    # fp32 means fp32: parity with the CPU is what it is for
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return device


def _use_cpu(place: ProcessPlace) -> torch.device:
    if "OMP_NUM_THREADS" not in os.environ:  # else whoever started us has shared the cores out
        torch.set_num_threads(max(1, _usable_cores() // place.local_world_size))
    here = place.local_world_size == place.world_size or place.rendezvous.startswith("tcp://127.")
    if here and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nothing listens beyond it
    # PyTorch asks with its first tensor whether those of 2 MiB and more may lie in huge pages: rows of a table are far
    # apart, and what a step allocates is there with a 500th of the page faults
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    return torch.device("cpu")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

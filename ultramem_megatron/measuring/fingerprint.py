"""The fingerprint of the processes that run now."""

import datetime
import os
import platform
from pathlib import Path

import torch
import torch.distributed as dist

from ultramem_megatron.planning.fingerprint import Fingerprint


def fingerprint(device: torch.device) -> Fingerprint:
    """Of all ranks, taken to be alike. Collective over the world."""
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, platform.node())
    return Fingerprint(
        hardware=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        hosts=len(set(names)),
        processes=len(names),
        backend=dist.get_backend(),
        versions=_versions(device),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _versions(device: torch.device) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return versions


def _cpu_name() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu_facts().get('model name', platform.machine())}, {cores} cores"


def cpu_facts() -> dict[str, str]:
    """What Linux says of the processor, by its names for it (``model name``, ``cpu family``); nothing elsewhere."""
    description = Path("/proc/cpuinfo")
    if not description.exists():
        return {}
    of_one_core = description.read_text().partition("\n\n")[0]
    lines = (line.partition(":") for line in of_one_core.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}

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
    model = platform.machine()
    description = Path("/proc/cpuinfo")
    if description.exists():
        lines = (line.partition(":") for line in description.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    return f"{model}, {cores} cores"

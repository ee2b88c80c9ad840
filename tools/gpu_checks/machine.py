"""Which device, software and commit a report is about, and where it goes."""

import datetime
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_checks.program import REPOSITORY
from ultramem_megatron.errors import LaunchError

PACKAGES = ("torch", "megatron-core", "triton", "numpy", "transformer-engine", "apex")


def describe_device(wanted: str) -> dict[str, Any]:
    """Name, memory, driver.

    Raises:
        LaunchError: A GPU is wanted and torch sees none.
    """
    if wanted == "cpu":
        return {"name": "cpu", "processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    try:
        import torch
    except ImportError as error:
        raise LaunchError(
            f"torch cannot be imported by {sys.executable} ({error}), and every check needs it; start tools/gpu_check "
            "with a Python that has a CUDA build of torch, and megatron-core"
        ) from None
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise LaunchError(
            f"no CUDA device: torch.cuda.is_available() is False with torch {torch.__version__} ({built}) at "
            f"{sys.executable}, CUDA_VISIBLE_DEVICES = {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}. This check "
            "measures an NVIDIA GPU and says nothing about a machine without one; run it where `nvidia-smi` lists one "
            "and torch is a CUDA build, or use `make test`, which needs no GPU"
        )
    facts = torch.cuda.get_device_properties(0)
    return {
        "name": facts.name,
        "memory_bytes": facts.total_memory,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "driver": ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "cuda": torch.version.cuda,
    }


def versions() -> dict[str, str | None]:
    """Python and the packages that matter; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str:
    """Of the checkout, with a mark when files were changed; empty outside of git."""
    changed = ask("git", "-C", str(REPOSITORY), "status", "--porcelain")
    return ask("git", "-C", str(REPOSITORY), "rev-parse", "HEAD") + ("+changes" if changed else "")


def ask(*command: str) -> str:
    """What a program prints; empty when it is not there or fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def default_path(device: str) -> Path:
    """``benchmarks/gpu_check-nvidia-a100-sxm4-80gb-2026-11-20.json``."""
    short = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return REPOSITORY / "benchmarks" / f"gpu_check-{short}-{datetime.datetime.now(datetime.UTC).date()}.json"


def prepare_path(out: Path) -> None:
    """Find out now, and not after ten minutes, that the report cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("a").close()
    except OSError as error:
        raise LaunchError(
            f"--out {out} cannot be written ({error.strerror}); name a file in a folder of yours"
        ) from None

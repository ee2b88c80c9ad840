"""The machine that a study runs on, and the folder that it keeps for itself."""

import contextlib
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ultramem_megatron.errors import LaunchError


def look_at_machine() -> dict[str, Any]:
    """Device and versions, asked of a process of its own: this one needs neither torch nor GPU memory.

    Raises:
        LaunchError: torch cannot be imported.
    """
    asked = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise LaunchError(
            f"{sys.executable} cannot import torch and megatron-core, which every run needs "
            f"({asked.stderr.strip().splitlines()[-1]}); install them or start tools/ablate with another Python"
        )
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


_LOOK = """
import json, os, torch
from importlib.metadata import version
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
processor = f"{cores} CPU cores ({torch.backends.cpu.get_cpu_capability()})"
device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor}, no GPU"
print(json.dumps({"device": device, "torch": torch.__version__, "megatron-core": version("megatron-core")}))
"""


@contextlib.contextmanager
def locked(out: Path) -> Iterator[int]:
    """Keep other studies out of ``out``; gives the descriptor of the lock.

    Raises:
        LaunchError: Another one is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".ablate.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LaunchError(
                f"--out {out}: another tools/ablate, or a run that it left behind, is at work there; wait for it, or "
                "name another folder"
            ) from None
        yield file.fileno()

"""Who holds a run folder: what a start writes of itself, and whether that process is there."""

import json
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

LAUNCH = "ULTRAMEM_LAUNCH"
"""Set by ``--local`` for its ranks: by it they know that the lock is theirs."""
ATTEMPT = "ULTRAMEM_ATTEMPT"
"""Which start of a job this is, ``<job id>.<restart>``; set by the job's script."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """What ``lock.json`` holds."""

    token: str
    """Of this start and no other."""
    host: str
    pid: int
    process_started: str = ""
    """By the kernel's clock, so that another process of the same number is told apart."""
    machine: str = ""
    """This boot of the machine, and the name space of its process numbers."""
    job: str = ""
    """Of Slurm."""
    launch: str = ""
    """The same in all ranks of one start, as far as their launcher tells; empty for a lone process."""
    since: float = 0.0
    """Seconds since 1970."""

    @property
    def words(self) -> str:
        """For people."""
        job = f" (job {self.job})" if self.job else ""
        since = time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(self.since)) if self.since else ""
        return f"process {self.pid} on {self.host}{job}{since}"

    @property
    def is_sound(self) -> bool:
        """Whether it is of a form that may become part of a file's name, a command or a message."""
        names = re.fullmatch(r"[0-9a-f]{16}", self.token) and re.fullmatch(r"[0-9_]*", self.job)
        return bool(names) and isinstance(self.pid, int) and self.host.isprintable() and len(self.host) < 256

    @property
    def text(self) -> str:
        """The content of the file."""
        return json.dumps(asdict(self), indent=2) + "\n"


def this_process(environment: Mapping[str, str] = os.environ, pid: int | None = None) -> Holder:
    """What this process, or another one of this machine that it speaks for, would write into the lock."""
    number = pid or os.getpid()
    return Holder(
        token=secrets.token_hex(8),
        host=environment.get("SLURMD_NODENAME") or socket.gethostname(),
        pid=number,
        process_started=_process_started(number),
        machine=_machine(),
        job=environment.get("SLURM_JOB_ID", ""),
        launch=launch_of(environment),
        since=round(time.time(), 3),
    )


def launch_of(environment: Mapping[str, str]) -> str:
    """What all ranks of one start have in common, and no other start has; "" if the launcher does not tell."""

    def values(*names: str) -> str:
        found = [environment.get(name, "") for name in names]
        return ":".join(found) if found[0] else ""

    if ATTEMPT in environment:
        return f"job {environment[ATTEMPT]}"
    known = {
        "local": values(LAUNCH),
        "torchrun": values("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"),
        "mpi": values("PMIX_NAMESPACE") or values("OMPI_MCA_ess_base_jobid"),
        "step": values("SLURM_STEP_ID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
        "address": values("MASTER_ADDR", "MASTER_PORT"),
    }
    return next((f"{kind} {value}" for kind, value in known.items() if value), "")


def _machine() -> str:
    if sys.platform != "linux":
        return socket.gethostname()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _process_started(pid: int) -> str:
    fields = _stat_of(pid) if sys.platform == "linux" else []
    return fields[19] if fields else ""


def is_running(pid: int, started: str) -> bool:
    """Whether that process of this machine is there."""
    if sys.platform == "linux":
        fields = _stat_of(pid)
        return bool(fields) and fields[0] not in "ZX" and fields[19] == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _stat_of(pid: int) -> list[str]:
    """/proc/PID/stat from the state on; [] if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def for_local_ranks(holder: Holder) -> Holder:
    """The launcher of ``--local``, whose ranks know each other by its token; a rank of a job stays one."""
    return holder if holder.launch.startswith("job ") else replace(holder, launch=f"local {holder.token}")

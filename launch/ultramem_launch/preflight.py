"""What this machine has and what a run here would use: plain functions that return rows. Nothing prints.

A check never raises for what it finds: a finding that keeps a run from starting is a row with a problem.
"""

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultramem_megatron.errors import ConfigError
from ultramem_megatron.units import format_bytes

if TYPE_CHECKING:
    from ultramem_megatron.parallel.accelerators import Accelerator, Accelerators

Version = tuple[int, ...]

SUPPORTED: dict[str, tuple[Version, Version]] = {"torch": ((2, 9), (3,)), "megatron-core": ((0, 16, 1), (0, 17))}
"""Lowest version, and the first that is too new; as in pyproject.toml."""

LOWEST_PYTHON: Version = (3, 11)
PROBE_SECONDS = 20.0
LOAD_MPI = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(f"{mpi4py.__version__}, {MPI.Get_library_version()}")
"""


class Section(StrEnum):
    """The part of the report that a row belongs to."""

    SOFTWARE = "software"
    HARDWARE = "hardware"
    LAUNCHERS = "launchers"
    DATA = "data tools"
    CHOICES = "will be used"


class Status(StrEnum):
    """How a row is to be read."""

    OK = "ok"
    ABSENT = "absent"
    """Optional and not here."""
    PROBLEM = "problem"
    """No run can start."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    section: Section
    name: str
    status: Status
    found: str
    """Version, size or place; for an absent thing, what is done without it."""
    problem: str = ""
    """A paragraph with the remedy, when ``status`` is PROBLEM."""


@dataclass(frozen=True, slots=True)
class Report:
    """All rows, in the order of sections."""

    rows: list[Row] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """The paragraphs of what keeps a run from starting."""
        return [row.problem for row in self.rows if row.status is Status.PROBLEM]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``can_start``, ``problems`` and ``rows``."""
        return {
            "can_start": not self.problems,
            "problems": self.problems,
            "rows": [asdict(row) for row in self.rows],
        }


def inspect_machine(folder: Path) -> Report:
    """Every check. Imports torch and megatron-core when they are there (seconds).

    Args:
        folder: Where a run would write; its disk is measured.
    """
    rows = [check_python(), check_package("torch", "torch")]
    torch_runs = rows[-1].status is Status.OK
    accelerators, accelerator_rows = check_accelerators() if torch_runs else (None, [])
    # a wrong apex makes the import of megatron-core fail far from the cause: then it is not tried
    rows.append(check_package("megatron-core", "megatron.core.optimizer" if accelerators else None))
    rows += [*accelerator_rows, *check_gpus(torch_runs), check_cpu(), check_disk(folder)]
    rows += [*check_slurm(), *check_mpi(), *check_data_tools()]
    return Report(rows + (choices(accelerators) if accelerators else []))


def check_python() -> Row:
    """The interpreter that runs this."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= LOWEST_PYTHON:
        return Row(Section.SOFTWARE, "python", Status.OK, found)
    return _problem("python", found, f"Python {found} is too old; ultramem_megatron needs {_dotted(LOWEST_PYTHON)}")


def check_package(name: str, module: str | None) -> Row:
    """A required package: its version as pip knows it, then whether it can be imported.

    Args:
        name: A key of ``SUPPORTED``.
        module: What to import, or None to leave that out.
    """
    lowest, too_new = SUPPORTED[name]
    needed = f"a run needs {name} >= {_dotted(lowest)}, < {_dotted(too_new)}"
    remedy = f"`pip install '{name}>={_dotted(lowest)},<{_dotted(too_new)}'`"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return _problem(name, "missing", f"{name} is not installed in {sys.prefix}, and {needed}: {remedy}")
    if not lowest <= _numbers(version) < too_new:
        return _problem(name, version, f"{name} {version} in {sys.prefix} is not supported, {needed}: {remedy}")
    error = _import_error(module) if module else ""
    if error:
        problem = f"{name} {version} in {sys.prefix} cannot be imported ({error}); reinstall it: {remedy}"
        return _problem(name, f"{version}, {error}", problem)
    return Row(Section.SOFTWARE, name, Status.OK, version)


def check_accelerators() -> "tuple[Accelerators | None, list[Row]]":
    """Triton, apex, Transformer Engine. A wrong apex gives no accelerators and a row with its problem."""
    from ultramem_megatron.parallel.accelerators import find_accelerators

    try:
        found = find_accelerators()
    except ConfigError as error:
        return None, [_problem("apex", "unusable", str(error))]
    return found, [
        _optional(Section.SOFTWARE, "triton", found.triton, "no kernel needs it yet"),
        _optional(Section.SOFTWARE, "transformer engine", found.transformer_engine, "optional"),
        _optional(Section.SOFTWARE, "apex (NVIDIA)", found.apex, "optional"),
    ]


def check_gpus(torch_runs: bool) -> list[Row]:
    """One row a model of GPU, or why there is none."""
    if not torch_runs:
        return [Row(Section.HARDWARE, "gpu", Status.ABSENT, "not looked for without torch")]
    import torch

    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} sees none"
        if shutil.which("nvidia-smi"):
            found += ", although nvidia-smi is on PATH: is it the right build of torch?"
        return [Row(Section.HARDWARE, "gpu", Status.ABSENT, found)]
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    kinds = [(device.name, device.total_memory) for device in devices]
    return [
        Row(Section.HARDWARE, "gpu", Status.OK, f"{kinds.count(kind)} x {kind[0]}, {format_bytes(kind[1])} each")
        for kind in dict.fromkeys(kinds)
    ]


def check_cpu() -> Row:
    """Cores that this process may use, and physical memory."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Row(Section.HARDWARE, "cpu", Status.OK, f"{cores} of {os.cpu_count()} cores, {format_bytes(memory)}")


def check_disk(folder: Path) -> Row:
    """Free space where checkpoints would be written."""
    free = shutil.disk_usage(folder).free
    return Row(Section.HARDWARE, "disk", Status.OK, f"{format_bytes(free)} free in {folder.resolve()}")


def check_slurm() -> list[Row]:
    """The commands of Slurm, under which torchrun can start a run (slurm/README.md)."""
    rows = [_command(Section.LAUNCHERS, name, "no jobs from here") for name in ("sbatch", "srun", "scontrol")]
    if rows[0].status is Status.OK:
        rows.append(Row(Section.LAUNCHERS, "slurm", Status.OK, _first_line(["sbatch", "--version"])))
    return rows


def check_mpi() -> list[Row]:
    """mpirun, and mpi4py with the library it loads. Loaded in a process of its own: a broken MPI ends its process."""
    rows = [_command(Section.LAUNCHERS, "mpirun", "optional")]
    if importlib.util.find_spec("mpi4py") is None:
        return [*rows, Row(Section.LAUNCHERS, "mpi4py", Status.ABSENT, "not installed; optional")]
    found = _first_line([sys.executable, "-c", LOAD_MPI])
    if found:
        return [*rows, Row(Section.LAUNCHERS, "mpi4py", Status.OK, found)]
    return [*rows, Row(Section.LAUNCHERS, "mpi4py", Status.ABSENT, "installed, but finds no MPI library; optional")]


def check_data_tools() -> list[Row]:
    """What ``ultramem data fetch --source core`` calls beside pip."""
    return [_command(Section.DATA, name, "only for the core text set") for name in ("npm", "apt-get")]


def choices(accelerators: "Accelerators") -> list[Row]:
    """What a run on this machine uses."""
    device = "GPU" if accelerators.cuda.usable else "CPU, megatron-core through the CPU seam"
    chosen = {
        "device": device,
        "collectives": accelerators.backend,
        "optimizer": str(accelerators.adam),
        "memory lookups": "PyTorch",
    }
    return [Row(Section.CHOICES, name, Status.OK, value) for name, value in chosen.items()]


def _problem(name: str, found: str, problem: str) -> Row:
    return Row(Section.SOFTWARE, name, Status.PROBLEM, found, problem)


def _import_error(module: str) -> str:
    """What goes wrong when a module is imported, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # megatron-core warns of what is optional; rows of their own tell that
            importlib.import_module(module)
    except Exception as error:  # a broken installation fails in ways of its own; each must be told, not raised
        return f"{type(error).__name__}: {error}"
    return ""


def _optional(section: Section, name: str, accelerator: "Accelerator", without: str) -> Row:
    if accelerator.usable:
        return Row(section, name, Status.OK, accelerator.version)
    return Row(section, name, Status.ABSENT, f"{accelerator.reason}; {without}")


def _command(section: Section, name: str, without: str) -> Row:
    place = shutil.which(name)
    return Row(section, name, Status.OK, place) if place else Row(section, name, Status.ABSENT, without)


def _first_line(command: list[str]) -> str:
    """The first line that a command prints, or "" when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""


def _numbers(version: str) -> Version:
    """``2.13.0+cpu`` -> (2, 13, 0); a pre-release counts as its release."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = "".join(character for character in part if character.isdigit()) if part[:1].isdigit() else ""
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))

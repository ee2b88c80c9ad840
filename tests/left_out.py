"""What a run of the tests left out for want of something on this machine: a line for each, and how to get it."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """Something that some tests need."""

    name: str
    where: str
    """Pattern of the tests that need it."""
    reason: str
    """Pattern of what they say when it is not there."""
    remedy: str


DEBIAN = "on Debian as root: apt-get install"
NEEDS = (
    Need("GPU", r"", r"needs a CUDA device", "run tools/gpu_check on a machine with an NVIDIA GPU"),
    Need("Slurm", r"^tests/slurm/", r"must run as root", "run as root: Slurm's daemons start tasks for users"),
    Need("Slurm", r"^tests/slurm/", r"", f"{DEBIAN} slurmctld slurmd slurm-client munge"),
    Need("a browser", r"", r"Chromium|playwright", f"{DEBIAN} chromium; pip install playwright"),
    Need("MPI", r"", r"mpirun|mpi4py|MPI", f"{DEBIAN} openmpi-bin; pip install mpi4py"),
    Need("Triton", r"", r"triton", "pip install 'triton>=3.6'"),
    Need("root", r"", r"\broot\b", "run as root"),
    Need("the package index", r"", r"package index|network|download", "a connection to PyPI"),
    Need("no GPU", r"", r"CUDA", "CUDA_VISIBLE_DEVICES= make test"),
    Need("Linux", r"", r"/proc|linux", "run on Linux"),
)
OTHER = "see `pytest -rs`"


def lines_of(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """One for each need, the most tests first.

    Args:
        skipped: Test and its reason.
    """
    found: Counter[tuple[str, str]] = Counter()
    for test, reason in skipped:
        need = next((n for n in NEEDS if re.search(n.where, test) and re.search(n.reason, reason)), None)
        found[(f"want of {need.name}", need.remedy) if need else (reason, OTHER)] += 1
    return [f"left out for {why}: {count}; to get them: {remedy}" for (why, remedy), count in found.most_common()]

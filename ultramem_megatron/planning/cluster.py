"""``ClusterSpec``: the machines a plan is made for, and the names by which users call them."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.profile import ClusterProfile
from ultramem_megatron.planning.profile_file import BUILT_IN, SUFFIXES, built_in_profile, load_profile
from ultramem_megatron.units import GIB

LOCAL = "local"
"""This machine's CPU as some processes."""
LOOPBACK = "cpu-loopback"
"""The profile of ``LOCAL``, and another name for it."""
ALLOCATION = "slurm"
"""In place of a number of nodes: those of the Slurm allocation."""
MOST_UNITS = 100_000
"""Nodes, or processes of this machine."""


def _loopback() -> ClusterProfile:
    return built_in_profile(LOOPBACK)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSpec:
    """Nodes, ranks and memory, and how fast they are. One rank is one GPU, or one process of a machine without."""

    name: str
    """As the user typed it, count included: ``dgx-a100-80g:4``."""

    nodes: int
    """Machines."""

    gpus_per_node: int
    """Ranks on each node."""

    memory_bytes: int
    """Memory of one rank."""

    reserve_bytes: int = 0
    """Part of ``memory_bytes`` that no tensor of the run can use: runtime, communication buffers, fragmentation."""

    profile: ClusterProfile = field(default_factory=_loopback)
    """How fast its links and ranks are. Counts and memory are those above, whatever the profile says."""

    def __post_init__(self) -> None:
        for name, what in (("nodes", "nodes"), ("gpus_per_node", "ranks per node")):
            if getattr(self, name) < 1:
                raise PlanError(f'cluster "{self.name}" has {getattr(self, name)} {what}; a run needs at least 1')
        if self.usable_bytes <= 0:
            raise PlanError(
                f'cluster "{self.name}" leaves no memory to a rank: {self.memory_bytes / GIB:.2f} GiB, of which '
                f"{self.reserve_bytes / GIB:.2f} GiB are reserved; plan for fewer ranks"
            )

    @property
    def num_ranks(self) -> int:
        """Ranks of the whole cluster: the world size of the run."""
        return self.nodes * self.gpus_per_node

    @property
    def usable_bytes(self) -> int:
        """What the tensors of one rank may take."""
        return self.memory_bytes - self.reserve_bytes


def local_cluster(num_ranks: int, profile: ClusterProfile | None = None) -> ClusterSpec:
    """This machine's CPU as ``num_ranks`` processes, each with an equal share of the physical memory.

    Nothing is reserved: what an idle process takes is mostly library pages that all of them share.

    Args:
        num_ranks: Processes.
        profile: How fast they are; ``cpu-loopback`` unless told.

    Raises:
        PlanError: ``num_ranks`` is below 1.
    """
    physical_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return ClusterSpec(
        name=f"{LOCAL if profile is None else profile.name}:{num_ranks}",
        nodes=1,
        gpus_per_node=num_ranks,
        memory_bytes=physical_bytes // max(1, num_ranks),
        profile=profile or _loopback(),
    )


def cluster_of(profile: ClusterProfile, nodes: int, ranks_per_node: int | None = None) -> ClusterSpec:
    """So many machines of a kind.

    Args:
        profile: The kind.
        nodes: Machines.
        ranks_per_node: On each; as many as the profile says unless told.
    """
    return ClusterSpec(
        name=f"{profile.name}:{nodes}",
        nodes=nodes,
        gpus_per_node=profile.ranks_per_node if ranks_per_node is None else ranks_per_node,
        memory_bytes=profile.memory_bytes,
        reserve_bytes=profile.reserve_bytes,
        profile=profile,
    )


def profile_for_device(device_name: str, memory_bytes: int) -> ClusterProfile:
    """The built-in profile that is nearest to a GPU.

    Args:
        device_name: As CUDA has it: ``NVIDIA A100-SXM4-80GB``.
        memory_bytes: Of the GPU; tells the two kinds of A100 apart.
    """
    for mark, profile in (("H200", "hgx-h200"), ("H100", "hgx-h100")):
        if mark in device_name:
            return built_in_profile(profile)
    return built_in_profile("dgx-a100-40g" if memory_bytes < 60 * GIB else "dgx-a100-80g")


def parse_cluster(text: str, environment: Mapping[str, str] | None = None) -> ClusterSpec:
    """``local:4`` (4 processes here), ``dgx-a100-80g:2`` (2 nodes), ``dgx-a100-80g:slurm`` (those of the Slurm
    allocation), or a profile's file in place of its name; no count means 1.

    Args:
        text: What the user typed.
        environment: Where Slurm's variables are looked up; that of the process unless told.

    Raises:
        PlanError: The name is unknown (the nearest is named), the file is no profile, or the count is no number from 1.
    """
    kind, count_text = _split(text)
    if kind in (LOCAL, LOOPBACK):
        return local_cluster(_count(text, kind, count_text, "ranks"))
    profile = _profile(text, kind)
    if count_text == ALLOCATION:
        return _allocated(profile, os.environ if environment is None else environment)
    if profile.device == "cpu":
        unit_count = _count(text, kind, count_text, "ranks", default=profile.ranks_per_node)
        return local_cluster(unit_count, profile)
    return cluster_of(profile, _count(text, kind, count_text, "nodes"))


def _split(text: str) -> tuple[str, str | None]:
    """Kind and count; the colon of a path such as ``C:\\x.json`` belongs to the path."""
    kind, colon, count = text.rpartition(":")
    if not colon or text.endswith(SUFFIXES):
        return text, None
    return kind, count


def _profile(text: str, kind: str) -> ClusterProfile:
    if kind in BUILT_IN:
        return built_in_profile(kind)
    if kind.endswith(SUFFIXES):
        return load_profile(Path(kind))
    known = [LOCAL, *BUILT_IN]
    near = difflib.get_close_matches(kind[:100], known, n=1, cutoff=0.0)
    raise PlanError(
        f'cluster "{text}" is unknown; the nearest is "{near[0]}" (known: {", ".join(known)}, or the path of a profile '
        f"that ends in {', '.join(SUFFIXES)})"
    )


def _count(text: str, kind: str, count_text: str | None, unit: str, default: int = 1) -> int:
    if count_text is None:
        return default
    if not (count_text.isascii() and count_text.isdecimal()):
        raise PlanError(f'cluster "{text}": "{count_text}" is not a number; write {kind}:N, as in {kind}:4')
    if len(count_text) > len(str(MOST_UNITS)) or int(count_text) > MOST_UNITS:
        raise PlanError(f'cluster "{text}" has more than {MOST_UNITS} {unit}; name fewer, as in {kind}:4')
    if int(count_text) < 1:
        raise PlanError(f'cluster "{text}" has {int(count_text)} {unit}; a run needs at least 1, as in {kind}:1')
    return int(count_text)


def _allocated(profile: ClusterProfile, environment: Mapping[str, str]) -> ClusterSpec:
    """The nodes of the Slurm job that this is part of. Slurm, sbatch(1), output environment variables."""
    nodes = _slurm_number(environment, "SLURM_JOB_NUM_NODES", "SLURM_NNODES")
    if nodes is None:
        raise PlanError(
            f"cluster {profile.name}:{ALLOCATION}: this is no Slurm job, SLURM_JOB_NUM_NODES is not set; run it inside "
            f"an allocation (salloc, sbatch), or write {profile.name}:N with the number of nodes"
        )
    ranks = _slurm_number(environment, "SLURM_NTASKS_PER_NODE")
    if ranks in (None, 1):  # one task a node is a torchrun, which starts a rank for each GPU
        ranks = _slurm_number(environment, "SLURM_GPUS_ON_NODE") or ranks
    return cluster_of(profile, nodes, ranks)


def _slurm_number(environment: Mapping[str, str], *names: str) -> int | None:
    """Of the first of the variables that is set."""
    name = next((one for one in names if environment.get(one)), None)
    if name is None:
        return None
    if not environment[name].isdecimal():
        raise PlanError(f'{name} = "{environment[name]}" is not a number; Slurm sets it, start the job anew')
    return int(environment[name])

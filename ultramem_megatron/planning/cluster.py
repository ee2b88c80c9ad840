"""``ClusterSpec``: the machine a plan is made for, and the names by which users call machines."""

import difflib
import os
from dataclasses import dataclass

from ultramem_megatron.errors import PlanError
from ultramem_megatron.units import GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSpec:
    """Nodes, ranks and memory. One rank is one GPU, or one process of a machine without."""

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

    def __post_init__(self) -> None:
        for field, what in (("nodes", "nodes"), ("gpus_per_node", "ranks per node")):
            if getattr(self, field) < 1:
                raise PlanError(f'cluster "{self.name}" has {getattr(self, field)} {what}; a run needs at least 1')
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


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeProfile:
    """One kind of node."""

    gpus_per_node: int
    memory_bytes: int
    reserve_bytes: int


GPU_RESERVE_BYTES = 4 * GIB
"""CUDA context, NCCL channels, allocator fragmentation: a rule of thumb, not a measurement."""

# Node sizes: NVIDIA DGX A100 data sheet
NODE_PROFILES = {
    "dgx-a100-80g": NodeProfile(gpus_per_node=8, memory_bytes=80 * GIB, reserve_bytes=GPU_RESERVE_BYTES),
    "dgx-a100-40g": NodeProfile(gpus_per_node=8, memory_bytes=40 * GIB, reserve_bytes=GPU_RESERVE_BYTES),
}
LOCAL = "local"


def local_cluster(num_ranks: int) -> ClusterSpec:
    """This machine's CPU as ``num_ranks`` processes, each with an equal share of the physical memory.

    Nothing is reserved: what an idle process takes is mostly library pages that all of them share.

    Raises:
        PlanError: ``num_ranks`` is below 1.
    """
    physical_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return ClusterSpec(
        name=f"{LOCAL}:{num_ranks}",
        nodes=1,
        gpus_per_node=num_ranks,
        memory_bytes=physical_bytes // max(1, num_ranks),
    )


def parse_cluster(text: str) -> ClusterSpec:
    """``local:4`` (4 processes here) or ``dgx-a100-80g:2`` (2 nodes); no count means 1.

    Raises:
        PlanError: The name is unknown (the nearest is named), or the count is no number from 1.
    """
    kind, colon, count_text = text.partition(":")
    known = [LOCAL, *NODE_PROFILES]
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=1, cutoff=0.0)
        raise PlanError(f'cluster "{text}" is unknown; the nearest is "{near[0]}" (known: {", ".join(known)})')
    if colon and not count_text.isdecimal():
        raise PlanError(f'cluster "{text}": "{count_text}" is not a number; write {kind}:N, as in {kind}:4')
    count = int(count_text) if colon else 1
    if count < 1:
        unit = "ranks" if kind == LOCAL else "nodes"
        raise PlanError(f'cluster "{text}" has {count} {unit}; a run needs at least 1, as in {kind}:1')
    if kind == LOCAL:
        return local_cluster(count)
    profile = NODE_PROFILES[kind]
    return ClusterSpec(
        name=f"{kind}:{count}",
        nodes=count,
        gpus_per_node=profile.gpus_per_node,
        memory_bytes=profile.memory_bytes,
        reserve_bytes=profile.reserve_bytes,
    )

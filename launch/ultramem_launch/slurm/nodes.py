"""What the nodes of a job say of themselves before it trains, and which of them are not fit. No torch.

Each node writes ``<node>.json`` into a folder of the run; so a node that does not see the run folder, or never started,
is known by what is missing.
"""

import json
import logging
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from ultramem_megatron import __version__
from ultramem_megatron.files import write_json, write_text
from ultramem_megatron.units import GIB

logger = logging.getLogger(__name__)

TOKEN = "token"
PACKAGES = ("torch", "megatron-core", "numpy", "triton")
GPU_FIELDS = ("index", "name", "driver_version", "ecc.errors.uncorrected.volatile.total", "memory.total")
PROBE_SECONDS = 60.0
SLOW_FRACTION = 0.7
"""Of what is expected, or of the median of all nodes: below it a node is slow."""
LEAST_NODES_FOR_A_MEDIAN = 3
"""Of two nodes nobody can tell which is the odd one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU, as nvidia-smi shows it."""

    index: int
    name: str
    driver: str
    uncorrected_errors: int | None
    """Memory errors that ECC could not correct since the driver was loaded; None where there is no ECC."""
    memory_mib: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFacts:
    """What one node found."""

    node: str
    token: str
    """What it read of the file that the first node wrote; "" if it sees none."""
    free_bytes: int
    needed_bytes: int
    gpus: list[Gpu]
    needed_gpus: int
    versions: dict[str, str]


def write_token(folder: Path) -> None:
    """A file that every node must see with the same content."""
    write_text(folder / TOKEN, f"{folder.name}\n")


def inspect_node(node: str, folder: Path, needed_gpus: int, needed_bytes: int) -> NodeFacts:
    """This node."""
    token = folder / TOKEN
    return NodeFacts(
        node=node,
        token=token.read_text().strip() if token.is_file() else "",
        free_bytes=shutil.disk_usage(folder).free,
        needed_bytes=needed_bytes,
        gpus=find_gpus() if needed_gpus else [],
        needed_gpus=needed_gpus,
        versions=find_versions(),
    )


def find_versions() -> dict[str, str]:
    """Of what must be the same on all nodes. Nothing is imported."""
    found = {"python": sys.version.split()[0], "ultramem": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def find_gpus() -> list[Gpu]:
    """As nvidia-smi lists them; none where it is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(done.stdout) if done.returncode == 0 else []


def parse_gpus(table: str) -> list[Gpu]:
    """Lines of ``GPU_FIELDS``; a count that is no number (``[N/A]``) becomes None."""
    found = []
    for line in table.splitlines():
        index, name, driver, errors, memory = (part.strip() for part in line.split(","))
        found.append(
            Gpu(
                index=int(index),
                name=name,
                driver=driver,
                uncorrected_errors=int(errors) if errors.isdecimal() else None,
                memory_mib=int(memory),
            )
        )
    return found


def save_facts(folder: Path, facts: NodeFacts) -> None:
    """``<node>.json``."""
    write_json(folder / f"{facts.node}.json", asdict(facts))


def read_facts(folder: Path) -> dict[str, NodeFacts]:
    """By node."""
    found = {}
    for file in folder.glob("*.json"):
        try:
            one = json.loads(file.read_text())
            found[one["node"]] = NodeFacts(**{**one, "gpus": [Gpu(**gpu) for gpu in one["gpus"]]})
        except (OSError, ValueError, KeyError, TypeError) as error:  # the node then counts as one that did not answer
            logger.warning("%s is damaged (%s) and passed over", file, error)
    return found


def bad_nodes(nodes: Sequence[str], facts: Mapping[str, NodeFacts]) -> dict[str, str]:
    """The nodes that are not fit, each with the reason.

    Args:
        nodes: All of the job.
        facts: Of those that answered.
    """
    usual = {key: _most_common(one.versions.get(key) for one in facts.values()) for key in _keys(facts)}
    reasons = {}
    for node in nodes:
        if node not in facts:
            reasons[node] = "did not answer, or does not see the run folder"
        elif faults := _faults(facts[node], usual):
            reasons[node] = ", ".join(faults)
    return reasons


def _keys(facts: Mapping[str, NodeFacts]) -> list[str]:
    return sorted({key for one in facts.values() for key in one.versions})


def _faults(facts: NodeFacts, usual: Mapping[str, Any]) -> list[str]:
    faults = []
    if not facts.token:
        faults.append("its run folder is not the one of the first node")
    if facts.free_bytes < facts.needed_bytes:
        faults.append(f"{facts.free_bytes / GIB:.1f} GiB free of {facts.needed_bytes / GIB:.1f} GiB needed")
    if len(facts.gpus) < facts.needed_gpus:
        faults.append(f"{len(facts.gpus)} of {facts.needed_gpus} GPUs")
    for gpu in facts.gpus:
        if gpu.uncorrected_errors:
            faults.append(f"GPU {gpu.index} has {gpu.uncorrected_errors} memory errors that ECC could not correct")
    for key, version in usual.items():
        if facts.versions.get(key) != version:
            faults.append(f"{key} {facts.versions.get(key)}, elsewhere {version}")
    return faults


def _most_common(values: Any) -> Any:
    return Counter(values).most_common(1)[0][0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """Bus bandwidth of an all-reduce, bytes/s."""

    node_bytes_per_second: dict[str, float]
    """Among the ranks of one node, by node."""
    all_bytes_per_second: float
    """Among all ranks."""
    expected_bytes_per_second: float
    """Of one node; 0 when the site says nothing."""


def read_speeds(folder: Path) -> Speeds | None:
    """None when the all-reduce did not come to its end."""
    file = folder / "all_reduce" / "speeds.json"
    try:
        return Speeds(**json.loads(file.read_text())) if file.is_file() else None
    except (ValueError, TypeError) as error:
        logger.warning("%s is damaged (%s) and passed over", file, error)
        return None


def save_speeds(folder: Path, speeds: Speeds) -> None:
    """Beside the facts of the nodes."""
    write_json(folder / "all_reduce" / "speeds.json", asdict(speeds))


def slow_nodes(speeds: Speeds) -> dict[str, str]:
    """Nodes far below what the site expects or, where it says nothing, below the others if there are enough of them."""
    found = speeds.node_bytes_per_second
    usual = speeds.expected_bytes_per_second
    if not usual and len(found) >= LEAST_NODES_FOR_A_MEDIAN:
        usual = median(found.values())
    whose = "that the site expects" if speeds.expected_bytes_per_second else "of the median node"
    return {
        node: f"all-reduce at {speed / 1e9:.2f} GB/s, {usual / 1e9:.2f} {whose}"
        for node, speed in found.items()
        if speed < SLOW_FRACTION * usual
    }

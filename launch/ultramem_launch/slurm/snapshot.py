"""What a job will run, fixed at the moment it is submitted: config, plan, version, and a copy of the code if wanted."""

import dataclasses
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultramem_launch.slurm.folder import JobFolder
from ultramem_launch.slurm.needs import Needs, save_needs
from ultramem_launch.slurm.nodes import find_versions
from ultramem_launch.slurm.request import JobRequest
from ultramem_launch.slurm.site import Site
from ultramem_megatron.errors import ConfigError
from ultramem_megatron.files import write_json, write_text
from ultramem_megatron.units import GIB

if TYPE_CHECKING:
    from ultramem_megatron.config.run import RunConfig
    from ultramem_megatron.planning.cluster import ClusterSpec
    from ultramem_megatron.planning.plan import Plan

CODE = ("ultramem_megatron", "ultramem_kernels", "ultramem_launch")


def plan_for(config: "RunConfig", request: JobRequest, site: Site) -> "Plan":
    """The plan for as many of the nodes as can be used. A start on fewer plans anew.

    Raises:
        UltraMemError: Batch and degrees of parallelism fit no number of nodes that was asked for, or nothing fits.
    """
    from ultramem_megatron.planning.choose import choose_plan

    counts = range(request.max_nodes, request.min_nodes - 1, -1)
    fitting = (nodes for nodes in counts if _fits(config, nodes * request.tasks_per_node))
    nodes = next(fitting, request.max_nodes)
    return choose_plan(config, allocation_of(request, site, nodes))


def allocation_of(request: JobRequest, site: Site, nodes: int) -> "ClusterSpec":
    """The allocation as the planner sees it. Processes on CPUs: nodes are taken to be like this machine."""
    from ultramem_megatron.planning.cluster import local_cluster, parse_cluster

    node = parse_cluster(f"{site.cluster}:1") if request.gpus_per_node else local_cluster(request.tasks_per_node)
    return dataclasses.replace(
        node,
        name=f"{node.name.partition(':')[0]}:{nodes}x{request.tasks_per_node}",
        nodes=nodes,
        gpus_per_node=request.tasks_per_node,
    )


def _fits(config: "RunConfig", ranks: int) -> bool:
    try:
        config.check_world_size(ranks)
    except ConfigError:
        return False
    return True


def save_snapshot(run_dir: Path, config: "RunConfig", plan: "Plan", request: JobRequest, site: Site) -> None:
    """Into ``run_dir/job``; the plan also to where the run looks for it."""
    from ultramem_megatron.config.folders import with_whole_paths
    from ultramem_megatron.config.load import to_yaml

    folder = JobFolder(run_dir)
    folder.logs.mkdir(parents=True, exist_ok=True)
    write_text(folder.config, to_yaml(with_whole_paths(config)))
    plan.save(run_dir / "plan.json")
    plan.save(folder.job / "plan.json")
    write_json(folder.job / "request.json", dataclasses.asdict(request))
    write_json(folder.version, describe_code())
    needs = Needs(
        gpus_per_node=request.gpus_per_node,
        free_bytes=int(site.free_gib * GIB),
        all_reduce_bytes_per_second=site.all_reduce_gb_per_second * 1e9,
    )
    save_needs(folder.job, needs)


def describe_code() -> dict[str, Any]:
    """Versions of packages and, in a checkout, the commit and whether files differ from it."""
    root = package_folders()["ultramem_megatron"].parent
    commit = _git(root, "rev-parse", "HEAD")
    return {
        "versions": find_versions(),
        "python": sys.executable,
        "source": str(root),
        "commit": commit or None,
        "changed_files": _git(root, "status", "--porcelain", "--untracked-files=no").splitlines() if commit else [],
    }


def _git(root: Path, *arguments: str) -> str:
    """What git says, "" when it is missing or this is no checkout."""
    if not shutil.which("git") or not (root / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def package_folders() -> dict[str, Path]:
    """Where this process has our packages from. They are not imported."""
    found = {}
    for name in CODE:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, f"{name} is part of what runs"
        found[name] = Path(spec.origin).parent
    return found


def code_paths() -> list[Path]:
    """Folders that ranks need on PYTHONPATH; none when the packages are installed."""
    installed = Path(sysconfig.get_path("purelib"))
    folders = [folder.parent for folder in package_folders().values()]
    return [folder for folder in dict.fromkeys(folders) if folder != installed]


def copy_code(folder: JobFolder) -> list[Path]:
    """Copy the packages, so that a job that starts again in a week runs what was submitted.

    Returns:
        Folders for PYTHONPATH.
    """
    for name, source in package_folders().items():
        target = folder.code / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return [folder.code]

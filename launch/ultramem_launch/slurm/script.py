"""JobRequest + Site -> the text of the batch script. One template, ``pretrain.sbatch`` beside this file."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ultramem_launch.slurm.request import JobRequest, refuse_control_characters
from ultramem_launch.slurm.site import Site
from ultramem_megatron import __version__
from ultramem_megatron.errors import LaunchError

TEMPLATE = Path(__file__).parent / "pretrain.sbatch"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the job's files and its programs are."""

    run_dirs: Sequence[Path]
    """One, or those of an array in the order of its tasks."""
    home: Path
    """Folder of the job's own files: the run folder, or the one above those of an array."""
    work_dir: Path
    """Relative paths of the config start here."""
    python: str
    python_path: Sequence[Path] = field(default_factory=tuple)
    """Folders of code that is not installed."""


def render_script(request: JobRequest, site: Site, place: Place) -> str:
    """The whole script. Values are quoted for bash with shlex, those of #SBATCH lines in sbatch's own way.

    Raises:
        LaunchError: A value cannot be quoted.
    """
    container = request.container_image
    values = {
        "options": "\n".join(f"#SBATCH {line}" for line in sbatch_options(request, site, place)),
        "version": __version__,
        "run_dir": _run_dir_lines(place),
        "nodes": shlex.quote(request.nodes),
        "tasks_per_node": str(request.tasks_per_node),
        "cpus_per_task": str(request.cpus_per_task),
        "preflight": shlex.quote(request.preflight),
        "python": shlex.quote(place.python),
        "rank_python": "python3" if container else '"$PYTHON"',
        "srun_options": " ".join(map(_array_item, _srun_options(request, site, place))),
        "environment": "\n".join([*_environment(request, site, place), *site.setup]),
        "max_restarts": str(request.max_restarts),
        "chain": str(request.chain),
        "requeue": "no" if request.chain > 1 else "yes",
    }
    # one pass: a value that looks like a placeholder stays as it is
    return re.sub(r"@([a-z_]+)@", lambda found: values[found[1]], TEMPLATE.read_text())


def sbatch_options(request: JobRequest, site: Site, place: Place) -> list[str]:
    """``--name=value`` as they stand behind #SBATCH.

    The number of tasks is not among them: Slurm would keep that of the first start, and a job that lost a node could
    not go on with fewer. So a node is asked for by its CPUs, and srun says how many tasks there are.
    """
    own = {
        "job-name": request.name,
        "nodes": request.nodes,
        "mincpus": str(request.tasks_per_node * request.cpus_per_task),
        **({"gpus-per-node": str(request.gpus_per_node), "exclusive": "", "mem": "0"} if request.gpus_per_node else {}),
        **({"time": request.time} if request.time else {}),
        "signal": f"B:USR1@{request.stop_before_seconds}",  # a partition's own limit gives the same warning
        "chdir": str(place.work_dir),
        "output": f"{pattern_text(place.home)}/logs/{'%A_%a' if len(place.run_dirs) > 1 else '%j'}.log",
        "open-mode": "append",
        "no-requeue" if request.chain > 1 else "requeue": "",
    }
    if len(place.run_dirs) > 1:
        own["array"] = f"0-{len(place.run_dirs) - 1}"
    return [option_text(name, value) for name, value in {**own, **site.sbatch, **request.sbatch}.items()]


def option_text(name: str, value: str) -> str:
    """One option, quoted in the way of sbatch's own reader (double quotes, backslash)."""
    if not value:
        return f"--{name}"
    refuse_control_characters(f"--{name}", value)
    if re.fullmatch(r"[A-Za-z0-9_./:,@%+=\[\]-]+", value):
        return f"--{name}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'--{name}="{escaped}"'


def pattern_text(path: Path) -> str:
    """A path in which sbatch replaces nothing."""
    return str(path).replace("%", "%%")


def _array_item(value: str) -> str:
    # commas are harmless in bash, but look like a mistake to shellcheck
    quoted = shlex.quote(value)
    return f"'{value}'" if quoted == value and "," in value else quoted


def _run_dir_lines(place: Place) -> str:
    for path in (*place.run_dirs, place.home, place.work_dir):
        refuse_control_characters("path", str(path))
    quoted = [shlex.quote(str(path)) for path in place.run_dirs]
    if len(quoted) == 1:
        return f"RUN_DIR={quoted[0]}"
    listed = "\n".join(f"  {path}" for path in quoted)
    return f"RUN_DIRS=(\n{listed}\n)\nRUN_DIR=${{RUN_DIRS[$SLURM_ARRAY_TASK_ID]}}"


def _environment(request: JobRequest, site: Site, place: Place) -> list[str]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()]
    if not request.gpus_per_node:
        lines.append("export CUDA_VISIBLE_DEVICES=                  # ranks are processes on CPUs")
    if place.python_path:
        joined = shlex.quote(":".join(map(str, place.python_path)))
        lines.append(f"export PYTHONPATH={joined}${{PYTHONPATH:+:$PYTHONPATH}}")
    return lines


def _srun_options(request: JobRequest, site: Site, place: Place) -> list[str]:
    options = list(site.srun)
    if request.container_image:
        mounts = [f"{path}:{path}" for path in (place.home, place.work_dir, *place.python_path)]
        for mount in mounts:
            if "," in mount or mount.count(":") != 1:
                raise LaunchError(f"--container-image: {mount} cannot be mounted, its name has a comma or colon")
        options += [
            f"--container-image={request.container_image}",
            f"--container-mounts={','.join(dict.fromkeys([*mounts, *site.container_mounts]))}",
            f"--container-workdir={place.work_dir}",
        ]
    for option in options:
        refuse_control_characters("srun option", option)
    return options

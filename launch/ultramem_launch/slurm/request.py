"""What a job asks Slurm for, checked before anything is written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ultramem_megatron.errors import LaunchError

NODES = re.compile(r"([1-9][0-9]*)(?:-([1-9][0-9]*))?")
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
GPUS_PER_NODE = 8
PREFLIGHTS = ("all", "nodes", "none")
OPTION_NAME = re.compile(r"[a-z][a-z0-9-]*")
DECIDED = {
    "nodes": "use --nodes",
    "ntasks": "use --nodes and --tasks-per-node",
    "ntasks-per-node": "use --tasks-per-node",
    "array": "use --array",
    "output": "logs lie in the run folder",
    "signal": "use --stop-before",
    "requeue": "jobs requeue themselves; use --chain where that is not allowed",
    "no-requeue": "use --chain 2 or more",
    "wrap": "the job has its own script",
}
"""Options of sbatch that the job's script relies on, and what to use instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """The options of ``ultramem submit`` that concern Slurm."""

    name: str
    nodes: str
    """``4``, or ``2-4``: as many as are to be had, at least 2; a lost node is then done without."""
    gpus_per_node: int
    tasks_per_node: int
    """Ranks of a node: one for each GPU, or processes on CPUs."""
    cpus_per_task: int = 1
    time: str = ""
    """Time limit as sbatch takes it; "" leaves the partition's."""
    stop_before_seconds: int = 300
    """How long before the time limit the run is asked to save."""
    max_restarts: int = 3
    """Starts in a row that get no further before the job gives up."""
    chain: int = 1
    """Jobs that follow each other, for clusters that do not allow requeueing."""
    preflight: str = "all"
    sbatch: dict[str, str] = field(default_factory=dict)
    """Further options by long name; an empty value is an option without one."""
    container_image: str = ""

    def __post_init__(self) -> None:
        found = NODES.fullmatch(self.nodes)
        if not found or int(found[1]) > int(found[2] or found[1]):
            raise LaunchError(f'--nodes "{self.nodes}" must be a number such as 4, or a range such as 2-4')
        if self.gpus_per_node and self.tasks_per_node != self.gpus_per_node:
            raise LaunchError(
                f"--tasks-per-node {self.tasks_per_node} contradicts --gpus-per-node {self.gpus_per_node}: a rank has "
                "one GPU; leave --tasks-per-node out, or set --gpus-per-node 0 to train on CPUs"
            )
        for option in ("tasks_per_node", "cpus_per_task", "chain", "stop_before_seconds"):
            if getattr(self, option) < 1:
                raise LaunchError(f"--{option.replace('_', '-')} {getattr(self, option)} must be at least 1")
        if self.max_restarts < 0:
            raise LaunchError(f"--max-restarts {self.max_restarts} must be 0 or more")
        if self.preflight not in PREFLIGHTS:
            raise LaunchError(f'--preflight "{self.preflight}" must be one of {", ".join(PREFLIGHTS)}')
        self._check_time()
        for name, value in {"name": self.name, "time": self.time, **self.sbatch}.items():
            refuse_control_characters(f"--{name}", value)

    def _check_time(self) -> None:
        if not self.time:
            return
        seconds = limit_seconds(self.time)
        if seconds <= self.stop_before_seconds:
            raise LaunchError(
                f"--time {self.time} is {seconds} s, and --stop-before {self.stop_before_seconds} would ask the run to "
                "save before it began; raise the limit or lower --stop-before"
            )

    @property
    def min_nodes(self) -> int:
        """The fewest that the job starts on."""
        return int(self.nodes.partition("-")[0])

    @property
    def max_nodes(self) -> int:
        """The most."""
        return int(self.nodes.rpartition("-")[2])


def ranks_of_node(gpus_per_node: int | None, tasks_per_node: int | None) -> tuple[int, int]:
    """GPUs and ranks of a node from the options as they were typed: --tasks-per-node alone means CPU processes."""
    if gpus_per_node is None:
        gpus_per_node = GPUS_PER_NODE if tasks_per_node is None else 0
    if tasks_per_node is None:
        tasks_per_node = gpus_per_node or 1
    return gpus_per_node, tasks_per_node


def limit_seconds(text: str) -> int:
    """Seconds of a time limit in any of sbatch's forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        LaunchError: It has none of these forms.
    """
    found = TIME.fullmatch(text)
    if not found:
        raise LaunchError(f'--time "{text}" must be minutes (90), H:M:S (24:00:00) or D-H:M:S (2-00:00:00)')
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def refuse_control_characters(option: str, value: str) -> None:
    """sbatch reads its options line by line, so a line break would end one; nothing can quote it.

    Raises:
        LaunchError: There is a line break or another character that cannot be printed.
    """
    if not value.isprintable():
        raise LaunchError(f"{option} {value!r} has a line break or another character that cannot be printed; rename it")


def check_run_dir(run_dir: Path) -> Path:
    """The absolute path.

    Raises:
        LaunchError: Its name cannot stand in a script.
    """
    path = run_dir.absolute()
    refuse_control_characters("--run-dir", str(path))
    if "\\" in str(path):
        raise LaunchError(f"--run-dir {path}: sbatch takes a backslash in a path for a mark of its own; rename it")
    return path


def parse_sbatch_options(options: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE``, or ``NAME`` alone, of --sbatch.

    Raises:
        LaunchError: One is no long option, or one that the job's own options decide.
    """
    found = {}
    for option in options:
        name, _, value = option.partition("=")
        if not OPTION_NAME.fullmatch(name):
            raise LaunchError(f'--sbatch "{option}" must be the long name of an option, as in --sbatch mail-type=END')
        if name in DECIDED:
            raise LaunchError(f"--sbatch {name}: {DECIDED[name]}")
        found[name] = value
    return found

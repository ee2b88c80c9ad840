"""The place of a task that ``srun`` started, from Slurm's variables, and whether torchrun's agree with them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ultramem_megatron.errors import LaunchError

SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")

FIRST_PORT, PORTS = 20000, 10000
"""Ports of rendezvous: one per job, below those that Linux gives to outgoing connections (from 32768)."""
RESTART_STRIDE = 2003
"""A start of a job has not the port of the start before, nor that of jobs submitted next. Prime: all come."""
STEP_STRIDE = 4001
"""Two runs in one allocation, each a step, do not meet at one port."""


@dataclass(frozen=True, slots=True)
class SlurmTask:
    """What Slurm says of this process."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    job_id: int
    first_node: str


def find_slurm_task(environment: Mapping[str, str]) -> SlurmTask | None:
    """The task of a step of several; None outside of ``srun`` and for a lone task, which may be a user's shell.

    A batch script has SLURM_PROCID, too, but it is no task of a step.

    Raises:
        LaunchError: Slurm's variables are incomplete or contradict each other.
    """
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    rank, world_size, local_rank, node, job_id = (
        _number(environment, name)
        for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")
    )
    per_node = expand_tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if sum(per_node) != world_size or node >= len(per_node) or local_rank >= per_node[node] or rank >= world_size:
        shown = ", ".join(f"{name}={environment.get(name)}" for name in (*SLURM_VARIABLES, "SLURM_NODEID"))
        raise LaunchError(f"Slurm's variables contradict each other: {shown}; start all ranks with one srun")
    first_node = first_host(environment.get("SLURM_STEP_NODELIST", ""))
    return SlurmTask(rank, world_size, local_rank, per_node[node], job_id, first_node)


def slurm_rendezvous(environment: Mapping[str, str]) -> str:
    """Where the tasks of this step meet: on the first node, or at MASTER_ADDR, at a port of this job.

    One node: on loopback.
    """
    task = find_slurm_task(environment)
    assert task is not None, "asked for a task of srun"
    alone = task.local_world_size == task.world_size
    host = environment.get("MASTER_ADDR") or ("127.0.0.1" if alone else task.first_node)
    if not host:
        raise LaunchError("neither SLURM_STEP_NODELIST nor MASTER_ADDR is set, so the ranks cannot meet; use srun")
    restart = _number(environment, "SLURM_RESTART_COUNT") if environment.get("SLURM_RESTART_COUNT") else 0
    step = _number(environment, "SLURM_STEP_ID") if environment.get("SLURM_STEP_ID") else 0
    port = (
        _number(environment, "MASTER_PORT") if environment.get("MASTER_PORT") else job_port(task.job_id, restart, step)
    )
    return f"tcp://{host}:{port}"


def job_port(job_id: int, restart: int = 0, step: int = 0) -> int:
    """Two jobs on one node rarely have the same; a job whose port was in use has another when it starts again."""
    return FIRST_PORT + (job_id + RESTART_STRIDE * restart + STEP_STRIDE * step) % PORTS


def refuse_contradictions(task: SlurmTask, environment: Mapping[str, str]) -> None:
    """torchrun's variables inside a task of srun: each task is a rank, or each is one torchrun that starts ranks.

    Raises:
        LaunchError: A pair of variables disagrees; both values are named.
    """
    if "GROUP_WORLD_SIZE" in environment:  # set by torchrun, the number of torchruns
        pairs = [("GROUP_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", task.world_size)]
        remedy = "start one torchrun for each task of srun, with --nnodes as many as there are"
    else:
        pairs = [
            ("RANK", "SLURM_PROCID", task.rank),
            ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", task.world_size),
            ("LOCAL_RANK", "SLURM_LOCALID", task.local_rank),
            ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE of this node", task.local_world_size),
        ]
        remedy = "unset the first, which srun does not need, or start with one launcher"
    for name, slurm_name, value in pairs:
        if _number(environment, name) != value:
            raise LaunchError(
                f"{name} = {environment[name]} contradicts {slurm_name} = {value}: two launchers disagree about this "
                f"process; {remedy}"
            )


def expand_tasks_per_node(text: str) -> list[int]:
    """``2(x3),1`` -> [2, 2, 2, 1]; [] when it is not of that form."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not found:
            return []
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def first_host(node_list: str) -> str:
    """``gpu[003-010,12],login`` -> ``gpu003``."""
    found = re.match(r"([^\[,]*)(?:\[([^\]\-,]*)[^\]]*\]([^\[,]*))?", node_list)
    assert found is not None, "every part may be empty"
    return "".join(part or "" for part in found.groups())


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise LaunchError(f'{name} = "{text}" should be a number: srun sets it; start all ranks with one srun')
    return int(text)

"""How this process was started, and its place among the others."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ultramem_launch.mpi_place import (
    HYDRA_VARIABLES,
    OPEN_MPI_VARIABLES,
    PLACE_VARIABLES,
    MpiTask,
    find_mpi_task,
    mpi_rendezvous,
    refuse_mpi_contradictions,
    refuse_singletons,
)
from ultramem_launch.slurm_place import (
    SLURM_VARIABLES,
    SlurmTask,
    find_slurm_task,
    refuse_contradictions,
    slurm_rendezvous,
)
from ultramem_megatron.errors import LaunchError

if TYPE_CHECKING:
    from ultramem_megatron.parallel.process import ProcessPlace

RENDEZVOUS = "ULTRAMEM_RENDEZVOUS"
"""Where the ranks of ``--local`` meet; without it the variables of torchrun are read."""

RANK_VARIABLES = PLACE_VARIABLES
"""What torchrun sets, and ``--local``. srun and mpirun have others: ``slurm_place.py``, ``mpi_place.py``."""


def is_one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as one rank of a run; ``find_place`` checks that it did so fully."""
    started = (find_mpi_task(environment), find_slurm_task(environment))
    return any(name in environment for name in RANK_VARIABLES) or started != (None, None)


def refuse_nested_launch(local: int, environment: Mapping[str, str] = os.environ) -> None:
    """``--local`` starts processes, which a process that is a rank already must not do.

    Raises:
        LaunchError: Inside torchrun or another launcher.
    """
    if is_one_of_several(environment):
        raise LaunchError(
            f"--local {local} starts {local} processes, but this process is already a rank of a launcher such as "
            f"torchrun ({_set_variables(environment)}); leave --local out, or start without torchrun, srun or mpirun"
        )


def refuse_several(verb: str, environment: Mapping[str, str] = os.environ) -> None:
    """For verbs that work on one process.

    Raises:
        LaunchError: Inside torchrun or another launcher.
    """
    if is_one_of_several(environment):
        raise LaunchError(
            f"`ultramem {verb}` works on one process, but this one is a rank of a launcher "
            f"({_set_variables(environment)}); start it without torchrun"
        )


def find_place(environment: Mapping[str, str] = os.environ) -> "ProcessPlace":
    """The place that the launcher gave, or that of a lone process.

    Raises:
        LaunchError: A rank variable is missing, is no number, or contradicts another one; launchers disagree.
    """
    from ultramem_megatron.parallel.process import ALONE, ProcessPlace

    by_mpi, task = find_mpi_task(environment), find_slurm_task(environment)
    if by_mpi is not None and RENDEZVOUS not in environment:
        refuse_mpi_contradictions(by_mpi, environment)
        if "GROUP_WORLD_SIZE" not in environment:
            return _place_of(by_mpi, mpi_rendezvous(by_mpi, environment))
        task = None  # of mpirun's daemons
    if not any(name in environment for name in RANK_VARIABLES) and task is not None:
        refuse_singletons(task.world_size, environment)
        return _place_of(task, slurm_rendezvous(environment))
    if not is_one_of_several(environment):
        return ProcessPlace(rank=0, world_size=1, local_rank=0, local_world_size=1, rendezvous=ALONE)
    rank, world_size, local_rank, local_world_size = (_number(environment, name) for name in RANK_VARIABLES)
    if not 0 <= rank < world_size:
        raise LaunchError(f"RANK = {rank} must be below WORLD_SIZE = {world_size}; start all ranks with one launcher")
    if not 0 <= local_rank < local_world_size <= world_size:
        raise LaunchError(
            f"LOCAL_RANK = {local_rank}, LOCAL_WORLD_SIZE = {local_world_size} and WORLD_SIZE = {world_size} "
            "contradict each other; start all ranks with one launcher"
        )
    if task is not None and RENDEZVOUS not in environment:
        refuse_contradictions(task, environment)
    if RENDEZVOUS not in environment:
        _number(environment, "MASTER_PORT")
        if not environment.get("MASTER_ADDR"):
            raise LaunchError("MASTER_ADDR is not set, so the ranks cannot meet; start with torchrun or --local")
    return ProcessPlace(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        rendezvous=environment.get(RENDEZVOUS, "env://"),
    )


def _place_of(task: SlurmTask | MpiTask, rendezvous: str) -> "ProcessPlace":
    from ultramem_megatron.parallel.process import ProcessPlace

    return ProcessPlace(
        rank=task.rank,
        world_size=task.world_size,
        local_rank=task.local_rank,
        local_world_size=task.local_world_size,
        rendezvous=rendezvous,
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise LaunchError(
            f'{name} = "{text}" should be a number: a launcher sets all of {", ".join(RANK_VARIABLES)}, MASTER_ADDR '
            f"and MASTER_PORT, and this process has {_set_variables(environment)}; start with torchrun or --local"
        )
    return int(text)


def _set_variables(environment: Mapping[str, str]) -> str:
    names = (*RANK_VARIABLES, *SLURM_VARIABLES, *OPEN_MPI_VARIABLES, *HYDRA_VARIABLES)
    return ", ".join(f"{name}={environment[name]}" for name in names if name in environment)

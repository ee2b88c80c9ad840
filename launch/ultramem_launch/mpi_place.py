"""The place of a rank that ``mpirun`` started, and where such ranks meet: MPI is asked once, and trains nothing."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from ultramem_megatron.errors import LaunchError

OPEN_MPI_VARIABLES = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
HYDRA_VARIABLES = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
"""Of MPICH's and Intel MPI's mpiexec."""

PLACE_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""The same four, as torchrun and ``--local`` name them."""

_REMEDY = "start all ranks with one mpirun"


@dataclass(frozen=True, slots=True)
class MpiTask:
    """What mpirun says of this process."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    variables: tuple[str, ...]
    """The names of the four, in this order."""

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """Rank, size, local rank, local size."""
        return self.rank, self.world_size, self.local_rank, self.local_world_size


def find_mpi_task(environment: Mapping[str, str]) -> MpiTask | None:
    """The rank of an mpirun of several; None outside of one, and for a lone rank, which may start others.

    ``srun --mpi=pmi2`` sets two of Hydra's four: such a rank is a task of Slurm (``slurm_place.py``).

    Raises:
        LaunchError: mpirun's variables are incomplete or contradict each other.
    """
    if "OMPI_COMM_WORLD_SIZE" in environment:
        names = OPEN_MPI_VARIABLES
    elif "PMI_SIZE" in environment and "MPI_LOCALNRANKS" in environment:
        names = HYDRA_VARIABLES
    else:
        return None
    rank, world_size, local_rank, local_world_size = (_number(environment, name) for name in names)
    if not (rank < world_size and local_rank < local_world_size <= world_size):
        shown = ", ".join(f"{name}={environment[name]}" for name in names)
        raise LaunchError(f"mpirun's variables contradict each other: {shown}; {_REMEDY}")
    return MpiTask(rank, world_size, local_rank, local_world_size, names) if world_size > 1 else None


def refuse_mpi_contradictions(task: MpiTask, environment: Mapping[str, str]) -> None:
    """Other launchers' variables beside mpirun's.

    Tasks of ``srun`` are not compared one by one: on all nodes but the first, a rank is a child of mpirun's own
    daemon, and it is that which is a task. The size of the allocation is.

    Raises:
        LaunchError: A pair of variables disagrees; both values are named.
    """
    rank_name, size_name = task.variables[:2]
    if "GROUP_WORLD_SIZE" in environment:  # each rank of MPI is one torchrun, which has started this process
        pairs = [("GROUP_RANK", rank_name, task.rank), ("GROUP_WORLD_SIZE", size_name, task.world_size)]
        pairs = [pair for pair in pairs if pair[0] in environment]
        remedy = "start one torchrun for each rank of mpirun, with --nnodes as many as there are"
    else:
        values = zip(PLACE_VARIABLES, task.variables, task.numbers, strict=True)
        pairs = [(name, mpi_name, value) for name, mpi_name, value in values if name in environment]
        remedy = "unset the first, which mpirun does not need, or start with one launcher"
    for name, mpi_name, value in pairs:
        if environment[name] != str(value):
            raise LaunchError(
                f"{name} = {environment[name]} contradicts {mpi_name} = {value}: two launchers disagree about this "
                f"process; {remedy}"
            )
    tasks = environment.get("SLURM_NTASKS", "")
    if "SLURM_STEP_NUM_TASKS" not in environment and tasks and tasks != str(task.world_size):
        raise LaunchError(
            f"SLURM_NTASKS = {tasks} contradicts {size_name} = {task.world_size}: the job has room for another number "
            f"of ranks than mpirun started; start it with -n {tasks}, or unset SLURM_NTASKS"
        )


def refuse_singletons(world_size: int, environment: Mapping[str, str]) -> None:
    """A task of srun whose MPI has another size than the step: ``srun --mpi`` did not fit the MPI library.

    Raises:
        LaunchError: With both values.
    """
    size = environment.get("PMI_SIZE", str(world_size))
    if size != str(world_size):
        raise LaunchError(
            f"PMI_SIZE = {size} contradicts SLURM_STEP_NUM_TASKS = {world_size}: MPI and Slurm disagree about the "
            "number of ranks; start with srun alone, or with mpirun alone"
        )


def mpi_rendezvous(task: MpiTask, environment: Mapping[str, str]) -> str:
    """Where the ranks meet: rank 0 chooses a host and a free port and tells the others through MPI. Collective.

    MPI ends here again; mpirun still watches the processes and ends them all when one fails.

    Raises:
        LaunchError: mpi4py is missing, or belongs to another MPI than mpirun.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it finds no MPI library
        raise LaunchError(
            f"ranks of mpirun meet through mpi4py, which cannot be used ({error}); install it with `pip install "
            "mpi4py`, or start with torchrun, srun or --local"
        ) from None
    MPI.Init()
    try:
        comm = MPI.COMM_WORLD
        _refuse_other_library(comm.Get_rank(), comm.Get_size(), task)
        address = comm.bcast(_choose_address(task, environment) if task.rank == 0 else None)
        comm.Barrier()
    finally:
        MPI.Finalize()
    return f"tcp://{address}"


def _refuse_other_library(rank: int, size: int, task: MpiTask) -> None:
    if (rank, size) != (task.rank, task.world_size):
        rank_name, size_name = task.variables[:2]
        raise LaunchError(
            f"mpi4py says rank {rank} of {size}, mpirun says {rank_name} = {task.rank} and {size_name} = "
            f"{task.world_size}: they belong to different MPI libraries; use the mpirun of the library that "
            '`python -c "from mpi4py import MPI; print(MPI.Get_library_version())"` names'
        )


def _choose_address(task: MpiTask, environment: Mapping[str, str]) -> str:
    """One machine: loopback. MASTER_ADDR and MASTER_PORT are taken where they are set."""
    alone = task.local_world_size == task.world_size
    host = environment.get("MASTER_ADDR") or ("127.0.0.1" if alone else os.uname().nodename)
    return f"{host}:{environment.get('MASTER_PORT') or _free_port()}"


def _free_port() -> int:
    """Free a moment ago; who takes it in between is named by the refusal of ``start_process``."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise LaunchError(f'{name} = "{text}" should be a number: mpirun sets it; {_REMEDY}')
    return int(text)

"""Ranks of mpirun: what its variables say, what may stand beside them, and a run that equals ``--local``."""

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ultramem_launch.mpi_place import HYDRA_VARIABLES, OPEN_MPI_VARIABLES, find_mpi_task
from ultramem_launch.place import PLACE_VARIABLES, find_place, is_one_of_several, refuse_nested_launch
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.testing.programs import run_forked
from ultramem_megatron.testing.tiny import write_tiny_config

NUMBERS = ("5", "8", "1", "4")
OPEN_MPI = dict(zip(OPEN_MPI_VARIABLES, NUMBERS, strict=True))
HYDRA = dict(zip(HYDRA_VARIABLES, NUMBERS, strict=True))
TORCHRUN = dict(zip(PLACE_VARIABLES, NUMBERS, strict=True))


@pytest.fixture(autouse=True)
def no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultramem_launch.place.mpi_rendezvous", lambda task, environment: "tcp://node0:4711")


@pytest.mark.parametrize("environment", [OPEN_MPI, HYDRA, OPEN_MPI | TORCHRUN, OPEN_MPI | {"SLURM_NTASKS": "8"}])
def test_a_rank_of_mpirun(environment: dict[str, str]) -> None:
    place = find_place(environment)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (5, 8, 1, 4)
    assert place.rendezvous == "tcp://node0:4711"
    assert is_one_of_several(environment)
    with pytest.raises(LaunchError, match=rf"already a rank .*{next(iter(environment))}=5"):
        refuse_nested_launch(4, environment)


def test_mpiruns_daemon_is_a_task_of_slurm_and_its_ranks_are_not() -> None:
    daemon = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    daemon |= {"SLURM_STEP_TASKS_PER_NODE": "1(x3)", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "3"}
    place = find_place(OPEN_MPI | daemon)
    assert (place.rank, place.world_size, place.rendezvous) == (5, 8, "tcp://node0:4711")


@pytest.mark.parametrize("size", [OPEN_MPI_VARIABLES[1], HYDRA_VARIABLES[1]])
def test_a_lone_rank_may_start_others(size: str) -> None:
    names = OPEN_MPI_VARIABLES if size in OPEN_MPI_VARIABLES else HYDRA_VARIABLES
    lone = dict(zip(names, ("0", "1", "0", "1"), strict=True))
    assert find_mpi_task(lone) is None
    refuse_nested_launch(4, lone)  # raises nothing
    assert find_place(lone).world_size == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (OPEN_MPI | {"RANK": "4"}, r"^RANK = 4 contradicts OMPI_COMM_WORLD_RANK = 5: two launchers"),
        (HYDRA | {"WORLD_SIZE": "4"}, r"^WORLD_SIZE = 4 contradicts PMI_SIZE = 8: "),
        (OPEN_MPI | {"LOCAL_RANK": "x"}, r"^LOCAL_RANK = x contradicts OMPI_COMM_WORLD_LOCAL_RANK = 1: "),
        (OPEN_MPI | {"SLURM_NTASKS": "16"}, r"^SLURM_NTASKS = 16 contradicts OMPI_COMM_WORLD_SIZE = 8.* -n 16, or"),
        (
            OPEN_MPI | TORCHRUN | {"GROUP_WORLD_SIZE": "2"},
            r"^GROUP_WORLD_SIZE = 2 contradicts OMPI_COMM_WORLD_SIZE = 8",
        ),
        (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "8"}, r"mpirun's variables contradict each other: OMPI_COMM_WORLD_RANK=8"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": ""}, r'^OMPI_COMM_WORLD_LOCAL_SIZE = "" should be a number: mpirun'),
    ],
)
def test_launchers_that_disagree_are_refused_with_both_values(environment: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        find_place(environment)


def test_srun_with_another_mpi_starts_singletons() -> None:
    task = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
    task |= {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n1"}
    assert find_place(task | {"PMI_SIZE": "4", "PMI_RANK": "1"}).world_size == 4
    with pytest.raises(LaunchError, match="PMI_SIZE = 1 contradicts SLURM_STEP_NUM_TASKS = 4"):
        find_place(task | {"PMI_SIZE": "1", "PMI_RANK": "0"})


MPIRUN = shutil.which("mpirun")


@pytest.mark.slow
@pytest.mark.skipif(MPIRUN is None, reason="needs mpirun (Debian: openmpi-bin)")
@pytest.mark.skipif(find_spec("mpi4py") is None, reason="needs mpi4py (pip install -e '.[mpi]')")
def test_the_same_curve_as_local(warm: None, tmp_path: Path) -> None:
    """Programs of their own by mpirun; the launcher and its ranks as forks of this process."""
    start = [sys.executable, "-m", "ultramem_launch", "pretrain", str(write_tiny_config(tmp_path))]
    start += ["training.steps=3", "checkpoint.interval=0", "--run-dir"]
    mpirun = [str(MPIRUN), "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in ([*mpirun, *start, str(tmp_path / "mpi")], [*start, str(tmp_path / "local"), "--local", "2"]):
        done = run_forked(command, env=environment)
        assert done.returncode == 0, done.stderr
    curves = [
        [json.loads(line)["train/loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("mpi", "local")
    ]
    assert [json.loads((tmp_path / run / "plan.json").read_text())["world_size"] for run in ("mpi", "local")] == [2, 2]
    assert len(curves[0]) == 3
    assert curves[0] == curves[1]
    assert json.loads((tmp_path / "mpi" / "status.json").read_text())["outcome"] == "finished"

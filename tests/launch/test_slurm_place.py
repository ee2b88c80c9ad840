"""The place of a task of srun, and what is refused when launchers disagree."""

import pytest

from ultramem_launch.place import find_place, is_one_of_several, refuse_nested_launch
from ultramem_launch.slurm_place import expand_tasks_per_node, first_host
from ultramem_megatron.errors import LaunchError

SRUN = {
    "SLURM_JOB_ID": "120345",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[009-010]",
}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"}
MEETING = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def test_two_runs_in_one_allocation_do_not_meet() -> None:
    ports = {find_place({**SRUN, "SLURM_STEP_ID": str(step)}).rendezvous for step in range(10)}
    assert len(ports) == 10


def test_a_task_of_srun() -> None:
    place = find_place(SRUN)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (5, 7, 1, 3)
    assert place.rendezvous == "tcp://gpu009:20345", "the first node, and a port of the job"
    assert is_one_of_several(SRUN)


def test_the_site_may_say_where_ranks_meet() -> None:
    assert find_place({**SRUN, "MASTER_ADDR": "10.0.0.7"}).rendezvous == "tcp://10.0.0.7:20345"
    assert find_place({**SRUN, **MEETING}).rendezvous == "tcp://node0:29500"


def test_each_start_of_a_job_has_a_port_of_its_own() -> None:
    """One that was in use by something else is not tried again."""
    ports = [find_place({**SRUN, "SLURM_RESTART_COUNT": str(count)}).rendezvous for count in range(5)]
    assert ports[:2] == ["tcp://gpu009:20345", "tcp://gpu009:22348"]
    assert len(set(ports)) == 5
    assert find_place({**SRUN, **MEETING, "SLURM_RESTART_COUNT": "3"}).rendezvous == "tcp://node0:29500"


def test_one_node_meets_on_loopback() -> None:
    alone = {**SRUN, "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "7", "SLURM_STEP_NODELIST": "gpu009"}
    assert find_place(alone).rendezvous == "tcp://127.0.0.1:20345"


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, id="a-shell-of-srun-pty"),
        pytest.param({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, id="a-batch-script"),
    ],
)
def test_processes_may_be_started_where_srun_has_not(environment: dict[str, str]) -> None:
    refuse_nested_launch(4, environment)  # raises nothing
    assert find_place(environment).world_size == 1


def test_no_launcher_inside_srun() -> None:
    with pytest.raises(LaunchError, match=r"--local 4 .* SLURM_STEP_NUM_TASKS=7.*without torchrun, srun or mpirun"):
        refuse_nested_launch(4, SRUN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_LOCALID": "3"}, "SLURM_LOCALID=3.*SLURM_STEP_TASKS_PER_NODE=4,3"),
        ({"SLURM_PROCID": "7"}, "SLURM_PROCID=7, SLURM_STEP_NUM_TASKS=7"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4"}, "contradict each other"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID=2"),
        ({"SLURM_JOB_ID": ""}, 'SLURM_JOB_ID = "" should be a number'),
    ],
)
def test_variables_of_slurm_that_cannot_be(changes: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        find_place({**SRUN, **changes})


def test_ranks_of_both_launchers_agree() -> None:
    place = find_place({**SRUN, **TORCHRUN, **MEETING})
    assert (place.rank, place.rendezvous) == (5, "env://")
    one_torchrun_a_task = {**SRUN, "RANK": "11", "WORLD_SIZE": "14", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert find_place({**one_torchrun_a_task, "GROUP_WORLD_SIZE": "7", **MEETING}).rank == 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "4"}, "RANK = 4 contradicts SLURM_PROCID = 5"),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE = 8 contradicts SLURM_STEP_NUM_TASKS = 7"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK = 0 contradicts SLURM_LOCALID = 1"),
        ({"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE = 4 contradicts SLURM_STEP_TASKS_PER_NODE of this node = 3"),
        ({"GROUP_WORLD_SIZE": "1"}, "GROUP_WORLD_SIZE = 1 contradicts SLURM_STEP_NUM_TASKS = 7.*--nnodes"),
    ],
)
def test_launchers_that_disagree_are_refused_with_both_values(changes: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        find_place({**SRUN, **TORCHRUN, **MEETING, **changes})


@pytest.mark.parametrize(
    ("text", "counts"), [("2(x2)", [2, 2]), ("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("", []), ("2(x", []), ("a", [])]
)
def test_tasks_per_node(text: str, counts: list[int]) -> None:
    assert expand_tasks_per_node(text) == counts


@pytest.mark.parametrize(
    ("text", "host"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("gpu[003-010,12],login", "gpu003"), ("a[1,3]-ib", "a1-ib"), ("x,y[1-2]", "x")],
)
def test_first_host(text: str, host: str) -> None:
    assert first_host(text) == host

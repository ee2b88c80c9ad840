"""How a process finds out what it is: variables of a launcher, taken all together or not at all."""

import pytest

from ultramem_launch.place import RENDEZVOUS, find_place, is_one_of_several, refuse_nested_launch
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.parallel.process import ALONE

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


def test_a_rank_of_torchrun() -> None:
    place = find_place(TORCHRUN)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (5, 8, 1, 4)
    assert place.rendezvous == "env://"
    assert is_one_of_several(TORCHRUN)


def test_a_rank_of_our_launcher_meets_in_a_file() -> None:
    environment = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    assert find_place({**environment, RENDEZVOUS: "file:///tmp/here"}).rendezvous == "file:///tmp/here"


def test_a_lone_process() -> None:
    lone = find_place({})
    assert (lone.rank, lone.world_size, lone.local_rank, lone.local_world_size) == (0, 1, 0, 1)
    assert lone.rendezvous == ALONE, "it needs no folder, which a kill would leave"
    assert not is_one_of_several({})


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("value", [None, "", "two", "-1", "1.0", "²"])
def test_a_variable_that_is_missing_or_no_number(name: str, value: str | None) -> None:
    environment = {key: text for key, text in TORCHRUN.items() if key != name}
    if value is not None:
        environment[name] = value
    with pytest.raises(LaunchError) as refusal:
        find_place(environment)
    assert f'{name} = "{value or ""}" should be a number' in str(refusal.value)
    assert "start with torchrun or --local" in str(refusal.value)


@pytest.mark.parametrize("value", [None, ""])
def test_nobody_to_meet(value: str | None) -> None:
    environment = {key: text for key, text in TORCHRUN.items() if key != "MASTER_ADDR"}
    if value is not None:
        environment["MASTER_ADDR"] = value
    with pytest.raises(LaunchError, match="MASTER_ADDR is not set, so the ranks cannot meet"):
        find_place(environment)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_one_variable_alone_is_no_lone_process(name: str) -> None:
    """Else every rank of a half-configured launcher would train on its own, into one folder."""
    with pytest.raises(LaunchError, match=rf"should be a number: .* this process has {name}=1; start with"):
        find_place({name: "1"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "8"}, r"^RANK = 8 must be below WORLD_SIZE = 8; start all ranks with one launcher$"),
        ({"WORLD_SIZE": "0"}, r"^RANK = 5 must be below WORLD_SIZE = 0"),
        ({"LOCAL_RANK": "4"}, r"^LOCAL_RANK = 4, LOCAL_WORLD_SIZE = 4 and WORLD_SIZE = 8 contradict each other"),
        ({"LOCAL_WORLD_SIZE": "9"}, r"LOCAL_WORLD_SIZE = 9 and WORLD_SIZE = 8 contradict each other"),
    ],
)
def test_variables_that_contradict_each_other(changes: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        find_place({**TORCHRUN, **changes})


@pytest.mark.parametrize("environment", [TORCHRUN, {"WORLD_SIZE": "2"}, {"RANK": "0"}])
def test_no_launcher_inside_a_launcher(environment: dict[str, str]) -> None:
    with pytest.raises(LaunchError) as refusal:
        refuse_nested_launch(4, environment)
    text = str(refusal.value)
    assert text.startswith("--local 4 starts 4 processes, but this process is already a rank of a launcher")
    assert all(f"{name}={value}" in text for name, value in environment.items() if not name.startswith("MASTER"))
    assert text.endswith("leave --local out, or start without torchrun, srun or mpirun")


def test_outside_of_a_launcher_processes_may_be_started() -> None:
    outside = {"HOME": "/root"}
    refuse_nested_launch(4, outside)  # raises nothing
    assert not is_one_of_several(outside)

"""Where rank 0 waits for the others: on the address they were told, and on no other."""

import socket
from collections.abc import Iterator

import pytest
import torch

from ultramem_megatron.errors import LaunchError, MeetingError
from ultramem_megatron.parallel.process import ProcessPlace, _listen, _meeting_point, meet


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def place(rendezvous: str) -> ProcessPlace:
    return ProcessPlace(rank=0, world_size=1, local_rank=0, local_world_size=1, rendezvous=rendezvous)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_stays_loopback(host: str) -> None:
    with socket.socket(fileno=_listen(host, 0)) as listener:
        assert listener.getsockname()[0] in ("127.0.0.1", "::1")


def test_ranks_meet_over_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store = _meeting_point(place(f"tcp://127.0.0.1:{port}"), timeout_seconds=30.0)["store"]
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_a_port_in_use_is_refused(taken: int) -> None:
    words = rf"rank 0 cannot listen on 127\.0\.0\.1:{taken} .*: Address already in use; a job .*MASTER_PORT"
    with pytest.raises(MeetingError, match=words):
        meet(place(f"tcp://127.0.0.1:{taken}"), torch.device("cpu"), timeout_seconds=5.0)


def test_so_is_that_of_torchrun(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(taken))
    with pytest.raises(
        MeetingError, match=rf"rank 0 cannot listen on 127\.0\.0\.1:{taken} .*: Address already in use; a job .*"
    ):
        meet(place("env://"), torch.device("cpu"), timeout_seconds=5.0)


def test_nobody_where_the_others_should_be() -> None:
    alone = ProcessPlace(rank=1, world_size=2, local_rank=1, local_world_size=2, rendezvous="tcp://127.0.0.1:1")
    with pytest.raises(
        MeetingError, match=r"rank 1 of 2 did not meet the others at 127\.0\.0\.1:1: .*timed out.*firewall"
    ):
        meet(alone, torch.device("cpu"), timeout_seconds=1.0)


def test_an_address_of_another_machine_is_bad_input() -> None:
    with pytest.raises(LaunchError, match=r"rank 0 cannot listen on 192\.0\.2\.1:0 .*set MASTER_ADDR to an address of"):
        _listen("192.0.2.1", 0)


def test_other_meeting_points_are_pytorchs() -> None:
    assert _meeting_point(place("file:///tmp/x"), timeout_seconds=5.0) == {"init_method": "file:///tmp/x"}

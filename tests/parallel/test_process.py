"""Where rank 0 waits for the others: on the address they were told, and on no other."""

import socket
from collections.abc import Iterator

import pytest

from ultramem_megatron.errors import LaunchError
from ultramem_megatron.parallel.process import ProcessPlace, _listen, _meeting_point


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
    with pytest.raises(LaunchError, match=rf"rank 0 cannot listen on 127\.0\.0\.1:{taken} .*MASTER_PORT"):
        _meeting_point(place(f"tcp://127.0.0.1:{taken}"), timeout_seconds=5.0)


def test_other_meeting_points_are_pytorchs() -> None:
    assert _meeting_point(place("file:///tmp/x"), timeout_seconds=5.0) == {"init_method": "file:///tmp/x"}

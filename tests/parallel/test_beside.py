"""Work beside the main stream: what waits for what, on streams that only note what they are told."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ultramem_megatron.parallel import beside
from ultramem_megatron.parallel.beside import Beside


class NotingStream:
    """As much of ``torch.cuda.Stream`` as is used."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def wait_stream(self, other: "NotingStream") -> None:
        self.notes.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.notes.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        self.notes.append(f"event of {self.name}")
        return f"the event of {self.name}"


class NotingTensor:
    """A tensor on a GPU that there is not."""

    is_cuda, device = True, "cuda"

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def record_stream(self, stream: NotingStream) -> None:
        self.notes.append(f"{self.name} is kept for {stream.name}")


def test_the_side_waits_for_what_is_given_and_who_joins_for_what_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    main, side = NotingStream("main", notes), NotingStream("side", notes)
    current = [main]

    @contextmanager
    def entered(stream: NotingStream) -> Any:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(beside, "_side_stream", lambda _: side)
    given: Any = NotingTensor("given", notes)
    made: Any = NotingTensor("made", notes)
    with Beside(given) as work:
        notes.append(f"works on {current[-1].name}")
    assert current == [main]
    notes.append("goes on")
    work.join(made)
    assert notes == [
        "side waits for main",
        "given is kept for side",
        "works on side",
        "event of side",
        "goes on",
        "main waits for the event of side",
        "made is kept for main",
    ]


def test_on_a_cpu_it_is_done_where_it_stands() -> None:
    given = torch.arange(3)
    with Beside(given) as work:
        made = given * 2
    work.join(made)
    assert made.tolist() == [0, 2, 4]

"""Order of steps and hooks, and how the loop ends; with stand-ins for the step and the stop."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ultramem_megatron.training import loop
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.loop import Outcome, run_loop


class Diary(Hook):
    """Writes down when it is called."""

    def __init__(self, name: str, pages: list[str]) -> None:
        self.name, self.pages = name, pages

    def before_step(self, state: Any) -> None:
        self.pages.append(f"{self.name} before {state.step + 1}")

    def after_step(self, state: Any, result: Any) -> None:
        assert result.step == state.step
        self.pages.append(f"{self.name} after {result.step}")

    def on_exit(self, state: Any) -> None:
        self.pages.append(f"{self.name} exit {state.step}")


class StopAfter:
    """A request that comes when some steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def is_requested(self, state: Any) -> bool:
        return bool(state.step >= self.step)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []

    def step(state: Any, micro_batches: str) -> SimpleNamespace:
        written.append(f"step on {micro_batches}")
        state.step += 1
        return SimpleNamespace(step=state.step)

    monkeypatch.setattr(loop, "train_step", step)
    return written


def batches(first: int = 1) -> Iterator[str]:
    number = first
    while True:
        yield f"batch {number}"
        number += 1


def at(step: int, steps: int) -> Any:
    return SimpleNamespace(step=step, config=SimpleNamespace(training=SimpleNamespace(steps=steps)))


def test_hooks_act_in_their_order(pages: list[str]) -> None:
    outcome = run_loop(at(0, 2), batches(), [Diary("a", pages), Diary("b", pages)], StopAfter(99))  # type: ignore[arg-type]
    assert outcome is Outcome.FINISHED
    assert pages == [
        *("a before 1", "b before 1", "step on batch 1", "a after 1", "b after 1"),
        *("a before 2", "b before 2", "step on batch 2", "a after 2", "b after 2"),
        *("a exit 2", "b exit 2"),
    ]


def test_a_stop_ends_it_between_steps(pages: list[str]) -> None:
    state = at(4, 10)
    assert run_loop(state, batches(5), [Diary("a", pages)], StopAfter(5)) is Outcome.STOPPED  # type: ignore[arg-type]
    assert state.step == 5
    assert pages == ["a before 5", "step on batch 5", "a after 5", "a exit 5"]


def test_a_stop_after_the_last_step_is_a_finish(pages: list[str]) -> None:
    assert run_loop(at(4, 5), batches(5), [], StopAfter(5)) is Outcome.FINISHED  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [5, 6])
def test_nothing_left_to_do(pages: list[str], step: int) -> None:
    assert run_loop(at(step, 5), batches(), [Diary("a", pages)], StopAfter(0)) is Outcome.FINISHED  # type: ignore[arg-type]
    assert pages == [f"a exit {step}"]


def test_a_failed_step_is_not_an_exit(pages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that may be half updated must not be saved."""

    def fail(state: Any, micro_batches: str) -> None:
        raise FloatingPointError("it overflowed")

    monkeypatch.setattr(loop, "train_step", fail)
    with pytest.raises(FloatingPointError):
        run_loop(at(0, 2), batches(), [Diary("a", pages)], StopAfter(99))  # type: ignore[arg-type]
    assert pages == ["a before 1"]


def test_a_hook_does_nothing_by_itself() -> None:
    hook, before, after = Hook(), at(0, 1), at(1, 1)
    hook.before_step(before)
    hook.after_step(after, SimpleNamespace(step=1))  # type: ignore[arg-type]
    hook.on_exit(after)
    assert (before, after) == (at(0, 1), at(1, 1))

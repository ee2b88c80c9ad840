"""Sinks: JSONL over restarts, console lines, TensorBoard files read back."""

import io
import math
import time
from pathlib import Path

import pytest

from ultramem_megatron.monitor.records import read_records
from ultramem_megatron.monitor.sinks import ConsoleSink, JsonlSink, TensorBoardSink


@pytest.fixture(autouse=True)
def no_wish_for_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)  # some CI systems set it


def jsonl(path: Path, steps: range, value: float, resume_step: int = 0) -> None:
    sink = JsonlSink(path, resume_step, clock=lambda: 100.0)
    for step in steps:
        sink.write(step, {"a/b": value})
    sink.close()


def read(path: Path) -> list[tuple[float, float]]:
    return [(record["step"], record["a/b"]) for record in read_records(path)]


def test_each_step_is_on_disk_at_once(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "run" / "metrics.jsonl", clock=lambda: 100.0)
    sink.write(1, {"a/b": 0.5})
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1, "time": 100.0, "a/b": 0.5}\n'
    sink.close()


def test_after_a_resume_every_step_stands_there_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    jsonl(path, range(1, 8), value=1.0)
    with path.open("a") as file:
        file.write('{"step": 8, "tr')  # killed here
    jsonl(path, range(6, 11), value=2.0, resume_step=5)
    assert read(path) == [(step, 1.0 if step <= 5 else 2.0) for step in range(1, 11)]


def test_a_fresh_start_forgets_the_old_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    jsonl(path, range(1, 8), value=1.0)
    jsonl(path, range(1, 3), value=2.0)
    assert read(path) == [(1, 2.0), (2, 2.0)]


def test_a_second_write_joins_the_record_of_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path, clock=lambda: 100.0)
    sink.write(1, {"train/loss": 3.0})
    sink.write(2, {"train/loss": 2.0})
    sink.write(2, {"validation/loss": 2.5})
    sink.write(3, {"train/loss": 1.0})
    sink.close()
    assert list(read_records(path)) == [
        {"step": 1, "time": 100.0, "train/loss": 3.0},
        {"step": 2, "time": 100.0, "train/loss": 2.0, "validation/loss": 2.5},
        {"step": 3, "time": 100.0, "train/loss": 1.0},
    ]


def test_a_resumed_run_may_add_to_the_step_of_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    jsonl(path, range(1, 4), value=1.0)
    sink = JsonlSink(path, resume_step=2, clock=lambda: 200.0)
    sink.write(2, {"validation/loss": 2.5})
    sink.write(3, {"a/b": 7.0})
    sink.close()
    assert list(read_records(path)) == [
        {"step": 1, "time": 100.0, "a/b": 1.0},
        {"step": 2, "time": 200.0, "a/b": 1.0, "validation/loss": 2.5},
        {"step": 3, "time": 200.0, "a/b": 7.0},
    ]


def test_steps_that_run_backwards_are_a_bug(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(2, {})
    with pytest.raises(AssertionError, match="step 1 comes after step 2"):
        sink.write(1, {})
    sink.close()


def console_lines(steps: range, interval: int, total: int) -> list[str]:
    stream = io.StringIO()
    sink = ConsoleSink(total, interval, stream)
    for step in steps:
        sink.write(step, {"train/loss": 10.0 / step, "throughput/step_seconds": 2.0})
    sink.close()
    return stream.getvalue().splitlines()


def test_console_prints_first_every_interval_and_last() -> None:
    assert console_lines(range(1, 12), interval=5, total=11) == [
        "step  1/11 | loss  10.0000 | left 0:00:20",
        "step  5/11 | loss   2.0000 | left 0:00:12",
        "step 10/11 | loss   1.0000 | left 0:00:02",
        "step 11/11 | loss   0.9091 | left 0:00:00",
    ]


def test_console_prints_validation_whenever_it_comes() -> None:
    stream = io.StringIO()
    sink = ConsoleSink(20, 10, stream)
    sink.write(1, {"train/loss": 3.0})
    sink.write(2, {"train/loss": 2.0})
    sink.write(2, {"validation/loss": 2.5, "validation/loss/moby": 2.5})
    assert stream.getvalue().splitlines() == [
        "step  1/20 | loss   3.0000",
        "step  2/20 | validation loss 2.5000 (moby 2.5000)",
    ]


def test_a_log_file_gets_one_plain_line_however_long() -> None:
    stream = io.StringIO()
    sources = {f"validation/loss/[bold]source{i}[/bold]": math.nan for i in range(40)}
    ConsoleSink(20, 10, stream).write(1, {"train/loss": math.nan, **sources})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and len(lines[1]) > 500
    assert "\x1b" not in stream.getvalue()
    assert "[bold]source39[/bold] nan" in lines[1]


def test_a_terminal_shows_a_nan_in_red_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO()
    ConsoleSink(20, 10, stream).write(1, {"train/loss": math.nan, "validation/loss/finance": 2.0})
    assert stream.getvalue().splitlines() == [
        "step  1/20 | loss      \x1b[1;31mnan\x1b[0m",
        "\x1b[1;32mstep  1/20 | validation loss (finance 2.0000)\x1b[0m",
    ]


@pytest.mark.slow
def test_tensorboard_shows_every_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps, value, resume_step in ((range(1, 8), 1.0, 0), (range(6, 11), 2.0, 5)):
        sink = TensorBoardSink(tmp_path, resume_step)
        for step in steps:
            sink.write(step, {"a/b": value, "a/nan": math.nan})
        sink.text(resume_step, "config", "model: small")
        sink.close()
        time.sleep(1.1)  # files are read in the order of their names, which hold the second of their opening

    events = EventAccumulator(str(tmp_path)).Reload()
    points = [(event.step, event.value) for event in events.Scalars("a/b")]
    assert points == [(step, 1.0 if step <= 5 else 2.0) for step in range(1, 11)]
    assert all(math.isnan(event.value) for event in events.Scalars("a/nan"))
    assert events.Tensors("config/text_summary")[0].tensor_proto.string_val[0] == b"model: small"

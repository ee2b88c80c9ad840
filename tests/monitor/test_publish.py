"""The publisher: what reaches its sinks, and who has any."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from ultramem_megatron.monitor.process import resident_bytes
from ultramem_megatron.monitor.publish import Publisher, open_publisher
from ultramem_megatron.monitor.records import read_records
from ultramem_megatron.monitor.sinks import MetricSink


class ListSink(MetricSink):
    def __init__(self) -> None:
        self.written: list[tuple[int, dict[str, float]]] = []
        self.is_closed = False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.written.append((step, dict(values)))

    def close(self) -> None:
        self.is_closed = True


def test_all_sinks_get_plain_floats_and_are_closed() -> None:
    first, second = ListSink(), ListSink()
    with pytest.raises(RuntimeError, match="boom"), Publisher([first, second]) as publisher:
        publisher.publish(3, {"a/b": torch.tensor(2.0), "a/c": 1})  # type: ignore[dict-item]
        publisher.text(3, "config", "a sink for numbers lets it pass")
        raise RuntimeError("boom")
    for sink in (first, second):
        assert sink.written == [(3, {"a/b": 2.0, "a/c": 1.0})]
        assert all(type(value) is float for value in sink.written[0][1].values())
        assert sink.is_closed


def test_a_rank_that_does_not_report_leaves_no_trace(tmp_path: Path) -> None:
    with open_publisher(tmp_path / "run", reports=False, total_steps=2, log_interval=1) as publisher:
        publisher.publish(1, {"train/loss": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_reporting_rank_writes_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    with open_publisher(run_dir, reports=True, total_steps=2, log_interval=1) as publisher:
        publisher.publish(1, {"train/loss": 1.5})
    assert [record["train/loss"] for record in read_records(run_dir / "metrics.jsonl")] == [1.5]
    assert len(list((run_dir / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert capsys.readouterr().out == "step 1/2 | loss   1.5000\n"


def test_resident_bytes_follow_an_allocation() -> None:
    before = resident_bytes()
    block = bytearray(b"x") * (64 * 2**20)
    assert resident_bytes() - before > 32 * 2**20
    assert len(block) == 64 * 2**20

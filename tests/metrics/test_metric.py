"""Joining of recordings, on cases worked out by hand."""

import math
import pickle
import subprocess
import sys

import pytest
import torch

from ultramem_megatron.metrics.metric import Metric, Reading, Recorder, Reduction, join_ranks


def metric(reduction: Reduction) -> Metric:
    return Metric(name=f"test/{reduction}", unit="things", reduction=reduction, help="For the test.")


MEAN, SUM, MAX, LAST = map(metric, (Reduction.MEAN, Reduction.SUM, Reduction.MAX, Reduction.LAST))


def recorded(*pairs: tuple[Metric, float], label: str = "") -> dict[str, Reading]:
    recorder = Recorder(enabled=True)
    for what, value in pairs:
        recorder.record(what, value, label)
    return recorder.drain()


@pytest.mark.parametrize(("what", "expected"), [(MEAN, 3.0), (SUM, 9.0), (MAX, 5.0), (LAST, 3.0)], ids=str)
def test_micro_batches_join_by_the_reduction(what: Metric, expected: float) -> None:
    assert recorded((what, 1.0), (what, 5.0), (what, 3.0))[what.name].value == expected


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        pytest.param(MEAN, (1 + 5 + 9) / 3, id="mean-weighs-recordings-not-ranks"),
        pytest.param(SUM, 15.0, id="sum"),
        pytest.param(MAX, 9.0, id="max"),
        pytest.param(LAST, 9.0, id="last-rank"),
    ],
)
def test_ranks_join_by_the_reduction(what: Metric, expected: float) -> None:
    assert join_ranks([recorded((what, 1.0), (what, 5.0)), recorded((what, 9.0))]) == {what.name: expected}


def test_ranks_without_a_reading_are_left_out() -> None:
    ranks = [recorded((MEAN, 2.0), label="layer0"), recorded((MEAN, 4.0), label="layer1"), {}]
    assert join_ranks(ranks) == {"test/mean/layer0": 2.0, "test/mean/layer1": 4.0}


def test_nothing_is_kept_while_disabled() -> None:
    recorder = Recorder()
    recorder.record(SUM, 1.0)
    assert recorder.drain() == {}
    recorder.enabled = True
    recorder.record(SUM, 2.0)
    recorder.enabled = False
    recorder.record(SUM, 4.0)
    assert recorder.drain()[SUM.name].value == 2.0


def test_draining_starts_anew() -> None:
    recorder = Recorder(enabled=True)
    recorder.record(SUM, 1.0)
    assert recorder.drain()[SUM.name].value == 1.0
    assert recorder.drain() == {}


def test_tensors_are_kept_without_their_graph_and_read_on_drain() -> None:
    recorder = Recorder(enabled=True)
    weight = torch.tensor(2.0, requires_grad=True)
    recorder.record(MEAN, weight * 3)
    recorder.record(MEAN, 2)
    (kept, _) = recorder._values[(MEAN, "")]
    assert isinstance(kept, torch.Tensor) and not kept.requires_grad
    assert recorder.drain()[MEAN.name].value == 4.0


def test_a_tensor_of_several_numbers_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="test/mean takes one number"):
        Recorder(enabled=True).record(MEAN, torch.zeros(1))


@pytest.mark.parametrize("values", [(math.nan, 1.0), (1.0, math.nan)], ids=str)
def test_a_nan_is_not_hidden_by_max(values: tuple[float, float]) -> None:
    first, second = values
    assert math.isnan(recorded((MAX, first), (MAX, second))[MAX.name].value)
    assert math.isnan(join_ranks([recorded((MAX, first)), recorded((MAX, second))])[MAX.name])


def test_readings_travel_between_processes() -> None:
    readings = recorded((MEAN, 1.0), (MEAN, 2.0))
    assert pickle.loads(pickle.dumps(readings)) == readings


@pytest.mark.parametrize("name", ["loss", "Train/loss", "a/b/c", "train/loss "])
def test_names_are_group_and_name(name: str) -> None:
    with pytest.raises(AssertionError, match="is not group/name"):
        Metric(name=name, unit="", reduction=Reduction.MEAN, help="")


def test_metrics_do_not_import_torch() -> None:
    code = "import sys, ultramem_megatron.metrics.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

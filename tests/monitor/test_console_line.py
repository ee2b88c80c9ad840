"""The lines a user reads, as snapshots."""

import math

import pytest

from ultramem_megatron.monitor.console_line import training_line, validation_line

VALUES = {
    "train/loss": 6.21341,
    "train/learning_rate": 1.932e-3,
    "train/gradient_norm": 0.81234,
    "throughput/tokens_per_second": 12_300.0,
    "train/consumed_tokens": 245_760.0,
}


def test_training_line() -> None:
    assert training_line(20, 240, VALUES, 83.4) == (
        "step  20/240 | loss   6.2134 | lr 1.93e-03 | grad norm    0.812 |  12.30 k tokens/s | left 0:01:23"
    )


def test_what_is_missing_is_left_out() -> None:
    assert training_line(7, 10, {"train/loss": 1.0}, None) == "step  7/10 | loss   1.0000"


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e300, 123_456.789, 1e-30, 0.0, -5.0], ids=str
)
def test_no_number_spoils_the_line(value: float) -> None:
    line = training_line(20, 240, dict.fromkeys(VALUES, value), value)
    assert len(line) <= 110
    assert line.count("|") == 5


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, "0:00:00"), (0.4, "0:00:00"), (90_000.0, "25:00:00"), (1e9, "over 100 days"), (math.nan, "over 100 days")],
    ids=str,
)
def test_time_left(seconds: float, expected: str) -> None:
    assert training_line(1, 2, {}, seconds).endswith(f"left {expected}")


def test_validation_line() -> None:
    values = {"validation/loss": 5.9512, "validation/loss/gcide": 5.31, "validation/loss/sotu": math.nan}
    assert validation_line(120, 240, values) == "step 120/240 | validation loss 5.9512 (gcide 5.3100, sotu nan)"


def test_no_validation_no_line() -> None:
    assert validation_line(120, 240, VALUES) is None

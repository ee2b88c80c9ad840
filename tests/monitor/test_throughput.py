"""Speed, with a clock that the test turns."""

import pytest

from ultramem_megatron.monitor.throughput import Throughput, seconds_left


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def take_step(throughput: Throughput, clock: Clock, seconds: float) -> dict[str, float]:
    throughput.start()
    clock.now += seconds
    values = throughput.finish()
    clock.now += 1000  # a checkpoint
    return values


def test_rates_are_means_over_the_window_and_skip_the_first_step() -> None:
    clock = Clock()
    throughput = Throughput(tokens_per_step=600, flops_per_token=10.0, window=2, clock=clock)
    taken = [take_step(throughput, clock, seconds) for seconds in (30.0, 2.0, 4.0, 8.0)]
    assert [values["throughput/step_seconds"] for values in taken] == [30.0, 2.0, 4.0, 8.0]
    assert [values["throughput/tokens_per_second"] for values in taken] == [20.0, 300.0, 200.0, 100.0]
    assert [values["throughput/model_flops_per_second"] for values in taken] == [200.0, 3000.0, 2000.0, 1000.0]


def test_a_window_of_one_step() -> None:
    clock = Clock()
    throughput = Throughput(tokens_per_step=10, flops_per_token=1.0, window=1, clock=clock)
    taken = [take_step(throughput, clock, seconds)["throughput/tokens_per_second"] for seconds in (5.0, 2.0, 1.0)]
    assert taken == [2.0, 5.0, 10.0]


def test_finish_needs_a_start() -> None:
    with pytest.raises(AssertionError, match="without start"):
        Throughput(tokens_per_step=1, flops_per_token=1.0).finish()


def test_time_left() -> None:
    assert seconds_left(12, 0.5) == 6.0

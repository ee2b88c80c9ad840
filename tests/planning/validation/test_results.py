"""The file of ``tools/bench_partition``: read back, continued, refused."""

from pathlib import Path

import pytest

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.fingerprint import Fingerprint
from ultramem_megatron.planning.validation.results import BenchResults, BenchShape, Measurement, Seconds, Skew

HERE = Fingerprint(
    hardware="2 cores", hosts=1, processes=4, backend="gloo", versions={"torch": "2.13.0"}, date="2026-11-23"
)
SHAPE = BenchShape(ranks=4, tokens=8, top_m=2, value_dim=16, num_rows=64, element_bytes=4, skew=Skew.UNIFORM)
TIMES = Seconds(median=2.0, low=1.0, high=3.0)
MEASUREMENT = Measurement(
    partition=PartitionName.NUMBER_WISE,
    shape=SHAPE,
    repeats=3,
    forward=TIMES,
    backward=TIMES,
    total=TIMES,
    phases={"dispatch": TIMES},
    forward_bytes=1.0,
    backward_bytes=2.0,
)


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    results = BenchResults(fingerprints=(HERE,), measurements=(MEASUREMENT,))
    results.save(tmp_path / "bench.json")
    assert BenchResults.load(tmp_path / "bench.json") == results


def test_what_was_measured_is_known() -> None:
    results = BenchResults().with_measurements([MEASUREMENT])
    assert results.has(PartitionName.NUMBER_WISE, SHAPE)
    assert not results.has(PartitionName.DIMENSION_WISE, SHAPE)
    assert not results.has(PartitionName.NUMBER_WISE, SHAPE.model_copy(update={"tokens": 9}))


def test_a_file_goes_on_in_the_same_circumstances_alone(tmp_path: Path) -> None:
    begun = BenchResults().continued_by(HERE, tmp_path)
    assert begun.continued_by(HERE.model_copy(update={"date": "2026-12-24"}), tmp_path) == begun
    more = HERE.model_copy(update={"processes": 8})
    assert begun.continued_by(more, tmp_path).fingerprints == (HERE, more)
    with pytest.raises(PlanError, match=r"torch 2\.13\.0 there, 2\.9\.1 here.* another file"):
        begun.continued_by(HERE.model_copy(update={"versions": {"torch": "2.9.1"}}), tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("{", "Invalid JSON", id="no JSON"),
        pytest.param('{"schema": "ultramem-plan"}', "schema: Input should be", id="another document"),
        pytest.param('{"measurements": [{"partition": "number_wise"}]}', "measurements.0.shape", id="lacks a field"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=f"bench.json.*{words}.*bench_partition"):
        BenchResults.load(path)

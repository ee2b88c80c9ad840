"""``tools/bench_partition`` on two processes: what it writes, that it counts, that it goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

from ultramem_megatron.planning.comm_cost import partition_bytes
from ultramem_megatron.planning.validation.results import BenchResults, Skew
from ultramem_megatron.testing.programs import ForkedProgram, run_forked

TOOL = Path(__file__).parents[2] / "tools" / "bench_partition"


@pytest.fixture(autouse=True)
def forked(warm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks that the tool starts are forks, too."""
    monkeypatch.setattr(subprocess, "Popen", ForkedProgram)


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    return run_forked([sys.executable, str(TOOL), *options])


@pytest.mark.slow
def test_every_strategy_is_timed_and_a_file_is_continued(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    small = ("--local", "2", "--quick", "--tokens", "5", "--top-m", "3", "--rows", "64", "--out", str(out))
    first = bench(*small, "--value-dim", "6")
    assert first.returncode == 0, first.stderr
    before = BenchResults.load(out)
    names = {one.partition for one in before.measurements}
    assert {"number_wise", "number_wise_pooled", "dimension_wise"} <= names
    for one in before.measurements:
        assert one.total.low <= one.total.median <= one.total.high
        assert set(one.phases) == {"dispatch", "lookup", "combine"}
        if one.partition == "dimension_wise":  # sends as much whatever is picked
            wire = partition_bytes(one.partition, one.shape.lookup, 2)
            assert (one.forward_bytes, one.backward_bytes) == (wire.forward_bytes, wire.backward_bytes)
    again = bench(*small, "--value-dim", "6", "7", "--skew", "zipf")
    assert again.returncode == 0, again.stderr
    after = BenchResults.load(out)
    assert after.measurements[: len(before.measurements)] == before.measurements
    fresh = after.measurements[len(before.measurements) :]
    assert {(one.shape.value_dim, one.shape.skew) for one in fresh} == {(7, Skew.ZIPF)}
    assert "dimension_wise" not in {one.partition for one in fresh}  # 2 ranks cannot share 7 columns


def test_bad_options_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    odd = bench("--local", "1", "--quick", "--cores", "3", "--value-dim", "8", "--out", str(out))
    assert odd.returncode == 2
    assert "--value-dim 8 does not divide by --cores 3" in odd.stderr
    assert not out.exists()

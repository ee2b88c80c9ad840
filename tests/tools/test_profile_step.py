"""tools/profile_step: a tiny run, its report and its trace; what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ultramem_megatron.parallel.timeline import Crossing
from ultramem_megatron.testing.programs import run_forked
from ultramem_megatron.testing.tiny import write_tiny_config

pytestmark = pytest.mark.usefixtures("warm")  # its forks are the programs

TOOL = Path(__file__).parents[2] / "tools" / "profile_step"
STEPS = 2


def profile(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, TOOL, *arguments]
    return run_forked(command, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")
def test_a_tiny_run(tmp_path: Path) -> None:
    trace = tmp_path / "step.json"
    split = ("memory.partition=number_wise", "memory.parallel_size=2")
    done = profile(
        write_tiny_config(tmp_path),
        *split,
        "--local",
        "2",
        "--steps",
        str(STEPS),
        "--dense",
        "--json",
        "--trace",
        trace,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(one["span"], one["overlap"]) for one in report["spans"]] == [("1:2", True), ("1:2", False)]
    for one in report["spans"]:
        for found in (one["forward"], one["backward"]):
            total, exposed = found["total_seconds"], found["exposed_seconds"]
            assert 0 <= exposed <= total and total > 0, "on a busy machine all of it may be hidden"
            assert found["hidden_fraction"] == pytest.approx(1 - exposed / total)
    assert len(report["step_seconds"]) == len(report["step_seconds_without_overlap"]) == STEPS
    least, most = report["ratio_range"]
    assert 0 < least <= most
    assert len(report["dense_step_seconds"]) == STEPS
    assert report["memory_share_without_overlap"] < 1 and report["memory_share"] < 1
    events = json.loads(trace.read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"block 1", "block 2", "memory: lookup", "memory: wait for rows"} <= names
    begun = [event["name"] for event in events if event.get("cat") == "memory" and event["ph"] == "b"]
    assert begun == ["sizes", "row numbers", "rows", "rows (gradient)"]


def test_what_is_under_way_gets_a_track(megatron: object) -> None:
    from ultramem_megatron.training.step_trace import with_crossings

    one = Crossing(name="rows", backward=True, begun=101.0, done=101.5, waited_from=101.25, waited_to=101.5)
    trace = with_crossings(
        {"baseTimeNanoseconds": 100_000_000_000, "traceEvents": [{"name": "own"}]}, {"span 1:2": [one]}
    )
    own, track, begin, end = trace["traceEvents"]
    assert own == {"name": "own"} and track["args"] == {"name": "span 1:2"}
    assert (begin["ph"], begin["name"], begin["ts"]) == ("b", "rows (gradient)", 1e6)
    assert (end["ph"], end["id"], end["ts"]) == ("e", begin["id"], 1.5e6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["parity", "memory.variant=none"], "has no memory layer"),
        (["parity", "--trace", "/nowhere/step.json"], "--trace /nowhere/step.json cannot be written"),
        (["no-such-config"], "no-such-config"),
    ],
)
def test_bad_input(arguments: list[str], said: str) -> None:
    done = profile(*arguments)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr

"""tools/measure_memory: real steps of real processes take what the plan says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ultramem_megatron.testing.programs import run_forked

pytestmark = pytest.mark.usefixtures("warm")  # its forks are the programs

TOOL = Path(__file__).parents[2] / "tools" / "measure_memory"
CONFIG = ("parity", "memory.spans=1:2", "memory.keys_per_side=768", "memory.value_dim=64")


def measure(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return run_forked([sys.executable, str(TOOL), *CONFIG, *arguments])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="the CPU backend, /proc")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measured_peaks_are_those_of_the_plan(precision: str) -> None:
    """A table of 144 MiB in fp32, halved: per element 16 bytes in fp32, and 18 in bf16.

    Beside it a process takes some 20 MiB whatever the table: threads, and what CPU kernels keep.
    """
    done = measure("--local", "2", "--steps", "1", "--json", f"training.precision={precision}")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert all(0.85 < ratio < 1.15 for ratio in report["measured_over_predicted"])
    assert report["predicted"]["total"] > (16 if precision == "fp32" else 18) * 768**2 * 32
    for rank in report["measured"]:
        assert set(rank) == set(report["predicted"])
        for part in ("table_weights", "table_gradients", "table_optimizer"):
            assert rank[part] == pytest.approx(report["predicted"][part], rel=1e-4), part
        assert rank["total"] > sum(rank[part] for part in rank if part.startswith("table"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="the CPU backend, /proc")
def test_a_difference_beyond_the_tolerance_is_a_failure() -> None:
    done = measure("--local", "1", "--steps", "1", "--tolerance", "1e-6", "memory.keys_per_side=64")
    assert done.returncode == 1
    assert "table optimizer" in done.stdout
    assert "peak of steps over predicted total" in done.stdout


def test_a_wrong_setting_is_a_paragraph() -> None:
    done = measure("training.nonsense=1", "--local", "2")
    assert done.returncode == 2
    assert "ConfigError" in done.stderr
    assert "Traceback" not in done.stderr

"""Every kernel compiles for A100 and H100 without a GPU, within its budget."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_kernel_keeps_its_budget() -> None:
    """In a process of its own: what the interpreter runs cannot be compiled."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    budget = json.loads((ROOT / "kernels" / "compile_budget.json").read_text())
    if triton.__version__ != budget["triton"]:
        pytest.skip(f"the budget is of triton {budget['triton']}, and {triton.__version__} is installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, str(ROOT / "tools" / "compile_kernels"), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240)
    report = json.loads(done.stdout)
    assert report["problems"] == [] and done.returncode == 0
    assert {kernel["case"] for kernel in report["kernels"]} == set(budget["kernels"])
    assert len(report["kernels"]) == 2 * len(budget["kernels"])
    assert all(kernel["spilled_bytes"] == kernel["atomics"] == 0 for kernel in report["kernels"])


def test_a_kernel_beyond_its_budget_is_named(tmp_path: Path) -> None:
    """The tool bites: half of the registers it needs are not enough, nor are instructions for no sums at all."""
    pytest.importorskip("triton", reason="triton is not installed")
    budget = json.loads((ROOT / "kernels" / "compile_budget.json").read_text())
    budget["instructions_per_kib"]["sm_90"] = 20
    budget["kernels"]["pool bf16 256 blocks 1"]["sm_80"]["registers"] = 4
    small = tmp_path / "budget.json"
    small.write_text(json.dumps(budget))
    words = [sys.executable, str(ROOT / "tools" / "compile_kernels"), "--only", "pool bf16 256 blocks 1"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*words, "--budget", str(small)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 1
    assert "pool bf16 256 blocks 1 for sm_80 takes" in done.stdout and "registers, budget 4" in done.stdout
    assert "for sm_90 issues" in done.stdout and "instructions for a KiB of rows, at most 20" in done.stdout

"""Every kernel compiles for A100 and H100 without a GPU, within its budget."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOOL, BUDGET = ROOT / "tools" / "compile_kernels", ROOT / "kernels" / "compile_budget.json"
ONE = ["--only", "pool bf16 256 blocks 1"]

# several calls of the tool in one process: the import of torch and Triton takes longer than most of them
CALLS = """
import contextlib, io, json, os, runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
for words, environment in json.loads(sys.argv[2]):
    os.environ |= environment
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = main(words)
    print(json.dumps([status, said.getvalue()]))
"""


@dataclass(frozen=True)
class Done:
    """What a call of the tool came to."""

    status: int
    said: str

    @property
    def report(self) -> Any:
        return json.loads(self.said)


def calls_of_the_tool(*calls: tuple[list[str], dict[str, str]]) -> list[Done]:
    """Arguments and variables of the environment, call by call. In a process of its own: what the interpreter runs
    cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-c", CALLS, str(TOOL), json.dumps(calls)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return [Done(*json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def budget() -> Any:
    triton = pytest.importorskip("triton", reason="triton is not installed")
    budget = json.loads(BUDGET.read_text())
    if triton.__version__ != budget["triton"]:
        pytest.skip(f"the budget is of triton {budget['triton']}, and {triton.__version__} is installed")
    return budget


@pytest.fixture(scope="module")
def done(budget: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """All calls: every kernel; one with a budget that is too small; one compiled anew, and so with few registers."""
    small = tmp_path_factory.mktemp("compile") / "budget.json"
    less = {"sm_80": {"registers": 4, "shared_bytes": 128}, "sm_90": budget["kernels"][ONE[1]]["sm_90"]}
    per_kib = budget["instructions_per_kib"] | {"sm_90": 20}
    small.write_text(json.dumps(budget | {"instructions_per_kib": per_kib, "kernels": {ONE[1]: less}}))
    fresh = {"TRITON_CACHE_DIR": str(small.parent / "cache")}
    calls: dict[str, tuple[list[str], dict[str, str]]] = {
        "every kernel": (["--json"], {}),
        "one": ([*ONE, "--json"], {}),
        "small budget": ([*ONE, "--budget", str(small)], {}),
        "anew": ([*ONE, "--json"], fresh),
        "few registers": ([*ONE, "--json", "--most-registers", "24"], fresh),
    }
    return dict(zip(calls, calls_of_the_tool(*calls.values()), strict=True))


@pytest.mark.slow
def test_every_kernel_keeps_its_budget(done: dict[str, Done], budget: Any) -> None:
    """What Triton compiled before, of the same source for the same target, is not compiled again."""
    report = done["every kernel"].report
    assert report["problems"] == [] and done["every kernel"].status == 0
    assert {kernel["case"] for kernel in report["kernels"]} == set(budget["kernels"])
    assert len(report["kernels"]) == 2 * len(budget["kernels"])
    assert all(kernel["spilled_bytes"] == kernel["atomics"] == 0 for kernel in report["kernels"])


@pytest.mark.slow
def test_a_kernel_compiled_anew_takes_what_the_kept_one_takes(done: dict[str, Done]) -> None:
    assert done["anew"].report == done["one"].report and len(done["one"].report["kernels"]) == 2


@pytest.mark.slow
def test_a_kernel_beyond_its_budget_is_named(done: dict[str, Done]) -> None:
    """The tool bites: half of the registers it needs are not enough, nor are instructions for no sums at all."""
    small = done["small budget"]
    assert small.status == 1
    assert "pool bf16 256 blocks 1 for sm_80 takes" in small.said and "registers, budget 4" in small.said
    assert "for sm_90 issues" in small.said and "instructions for a KiB of rows, at most 20" in small.said


@pytest.mark.slow
def test_a_kernel_that_spills_registers_is_named(done: dict[str, Done]) -> None:
    few = done["few registers"]
    assert few.status == 1
    for target, kernel in zip(("sm_80", "sm_90"), few.report["kernels"], strict=True):
        assert kernel["registers"] <= 24 and kernel["spilled_bytes"] > 0
        assert any(f"for {target} spills {kernel['spilled_bytes']} bytes" in text for text in few.report["problems"])

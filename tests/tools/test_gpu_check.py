"""tools/gpu_check where there is no GPU: it says so; and the program itself, tried on the CPU."""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ultramem_megatron.testing.programs import ForkedProgram, run_forked

TOOLS = Path(__file__).parents[2] / "tools"
LAYER_KEYS = {
    *("size", "precision", "tokens", "table_rows", "value_dim", "row_bytes_read", "forward_seconds"),
    *("backward_seconds", "gather_bytes_per_second", "errors", "problems"),
}
UNSKIP = """
import sys
import pytest

class Unskip:
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            item.own_markers = [mark for mark in item.own_markers if mark.name != "skip"]

sys.exit(pytest.main(sys.argv[1:], plugins=[Unskip()]))
"""


def load_tool(name: str) -> ModuleType:
    loader = SourceFileLoader(f"tool_{name}", str(TOOLS / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    path = list(sys.path)
    try:
        loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    """The tool as a module; it makes its parts importable."""
    return load_tool("gpu_check")


def part(name: str) -> ModuleType:
    """A part that ``gpu_check`` has imported."""
    return sys.modules[f"gpu_checks.{name}"]


def run_tool(*arguments: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(TOOLS / "gpu_check"), *map(str, arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return run_forked(command, cwd=cwd, env=environment, timeout=600)


def test_without_a_gpu_it_says_so_and_writes_nothing(warm: None, tmp_path: Path) -> None:
    ran = run_tool("--out", tmp_path / "out.json", cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1, "one paragraph, no traceback"
    assert ran.stderr.startswith("LaunchError: no CUDA device: torch.cuda.is_available() is False")
    assert torch.__version__ in ran.stderr and "make test" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_refused_first(warm: None, tmp_path: Path) -> None:
    ran = run_tool("--device", "cpu", "--out", tmp_path, cwd=tmp_path)
    assert ran.returncode == 2
    assert f"--out {tmp_path} cannot be written" in ran.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_program_itself(warm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and layer on the CPU: everything but the device."""
    torchrun = import_module("torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler")
    for module in (subprocess, torchrun):  # the sections that it starts are forks, too
        monkeypatch.setattr(module, "Popen", ForkedProgram)
    out = tmp_path / "sub" / "out.json"
    sizes = ("--steps", "12", "--layer-size", "tiny")
    ran = run_tool(
        "--device",
        "cpu",
        "--only",
        "training",
        "--only",
        "layer",
        "--only",
        "kernels",
        "--only",
        "step",
        *sizes,
        "--out",
        out,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(out.read_text())
    assert report["schema"] == 1 and report["sound"] is True
    assert report["device"]["name"] == "cpu"
    assert report["versions"]["torch"] == torch.__version__
    training, layer = report["sections"]["training"], report["sections"]["layer"]
    assert training["problems"] == layer["problems"] == report["sections"]["kernels"]["problems"] == []
    assert report["sections"]["step"]["facts"]["memory_share"] < 1
    assert len(training["facts"]["losses"]) == 12
    assert len(training["facts"]["losses_after_resume"]) == 10
    assert training["facts"]["tokens_per_second"] > 0 and training["facts"]["timed_steps"] == 2
    assert training["facts"]["peak_gpu_bytes_allocated"] is None, "nothing is claimed that was not measured"
    assert [one["precision"] for one in layer["facts"]["layers"]] == ["fp32", "bf16"]
    for one in layer["facts"]["layers"]:
        assert set(one) == LAYER_KEYS
        assert one["forward_seconds"] > 0 and one["backward_seconds"] > 0 and one["gather_bytes_per_second"] > 0
    assert "tokens/s" in ran.stdout and "gather" in ran.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there they run on the GPU")
def test_the_gpu_tests_hold_on_the_cpu(warm: None) -> None:
    """All but those of the process itself (nccl, no seam) and of waiting for a device: so that they do not rot where
    there is no GPU."""
    partitions = "tests/gpu/test_partitions.py"
    once, busy = "test_an_operation_waits_for_the_device_once_at_most", "test_waiting_for_sizes_leaves_the_device_busy"
    names = ("tests/gpu/test_process.py", f"{partitions}::{once}", f"{partitions}::{busy}")
    left_out = [word for name in names for word in ("--deselect", name)]
    chosen = ["tests/gpu", "-p", "no:cacheprovider", *left_out]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = run_forked([sys.executable, "-c", UNSKIP, *chosen], cwd=TOOLS.parent, env=outside, timeout=600)
    assert ran.returncode == 0, ran.stdout
    assert "skipped" not in ran.stdout.splitlines()[-1]


# --- One section does not take another with it ------------------------------------------------------------------------


def test_a_failed_section_leaves_the_others(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(task: Any) -> Any:
        part("program").run_program(task, "-c", "print('words'); raise SystemExit(7)")

    def succeed(task: Any) -> Any:
        return gpu_check.Finding({"layers": []}, [], "all is well")

    monkeypatch.setattr(gpu_check, "SECTIONS", {"tests": (fail, 20.0), "layer": (succeed, 20.0)})
    out = tmp_path / "out.json"
    arguments = argparse.Namespace(device="cpu", out=out, only=None, steps=6, layer_size=None)
    report = gpu_check.check(arguments)
    assert json.loads(out.read_text()) == report
    assert report["sound"] is False
    assert report["sections"]["layer"]["sound"] is True
    (problem,) = report["sections"]["tests"]["problems"]
    assert "ended with exit status 7" in problem and "words" in problem
    shown = capsys.readouterr().out
    assert "FAILED" in shown and "all is well" in shown


def test_what_overruns_its_time_is_ended_with_its_children(gpu_check: ModuleType, tmp_path: Path) -> None:
    child = tmp_path / "child"
    program = (
        "import subprocess, sys, time, pathlib;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    task = make_task(gpu_check, tmp_path, seconds=2.0)
    with pytest.raises(gpu_check.SectionFailed, match="did not end in time"):
        part("program").run_program(task, "-c", program)
    assert_ends(int(child.read_text()))


def make_task(gpu_check: ModuleType, folder: Path, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    return gpu_check.Task(device="cpu", folder=folder, steps=6, layer_sizes=("tiny",), deadline=deadline)


def assert_ends(pid: int) -> None:
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


def test_a_checkout_needs_no_install(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/the/user")
    path = part("program").environment("cuda")["PYTHONPATH"].split(os.pathsep)
    root = TOOLS.parent
    assert [Path(folder) for folder in path[:3]] == [root, root / "kernels", root / "launch"]
    assert path[3:] == ["/of/the/user"]
    assert part("program").environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""


# --- Verdicts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """``repository(code)``: what the section ``tests`` finds in a repository of one test file."""

    def look(code: str) -> Any:
        (tmp_path / "tests").mkdir()
        (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
        (tmp_path / "tests" / "test_one.py").write_text(f"import pytest\n\n\n{code}")
        folder = tmp_path / "folder"
        folder.mkdir()
        return part("sections").look_at_tests(make_task(gpu_check, folder))

    monkeypatch.setattr(part("program"), "REPOSITORY", tmp_path)
    return look


def test_tests_that_fail_are_named(repository: Callable[[str], Any]) -> None:
    marked = "@pytest.mark.gpu\ndef test_{0}(): {1}\n\n\n"
    code = marked.format("good", "pass") + marked.format("bad", "assert 0") + marked.format("off", "pytest.skip('x')")
    finding = repository(code + "def test_without_a_mark(): assert 0\n")
    assert finding.facts["passed"] == 1
    assert [name.rpartition("::")[2] for name in finding.facts["failed"]] == ["test_bad"]
    assert [name.rpartition("::")[2] for name in finding.facts["skipped"]] == ["test_off"]
    assert len(finding.problems) == 1 and "test_bad failed" in finding.problems[0]
    assert finding.summary == "1 passed, 1 failed, 1 skipped"


def test_tests_that_all_skip_prove_nothing(repository: Callable[[str], Any]) -> None:
    finding = repository("@pytest.mark.gpu\ndef test_off(): pytest.skip('no device')\n")
    assert finding.problems == ["no test marked gpu passed (1 skipped)"]


FALLING = [9.0 - 0.1 * step for step in range(30)]


@pytest.mark.parametrize(
    ("losses", "resumed", "problem"),
    [
        pytest.param(FALLING, [6.1] * 10, "", id="sound"),
        pytest.param(FALLING[::-1], [8.5] * 10, "did not fall", id="rising"),
        pytest.param(FALLING, [9.0] * 10, "jumped at the resume", id="weights-lost"),
    ],
)
def test_losses(gpu_check: ModuleType, losses: list[float], resumed: list[float], problem: str) -> None:
    problems = part("training").problems_of_losses(losses, resumed)
    assert len(problems) == bool(problem)
    assert all(problem in found for found in problems)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param({}, "", id="sound"),
        pytest.param({"exit_status": 0}, "the run ended with 0, not 75", id="not-stopped"),
        pytest.param({"steps": [1, 2, 3]}, "was to take steps 11 to 13, it took", id="started-anew"),
        pytest.param({"losses": [6.0, None, 6.0]}, "the loss of step 12 is not finite", id="nan"),
    ],
)
def test_runs(gpu_check: ModuleType, changes: dict[str, Any], problem: str) -> None:
    run = {"exit_status": 75, "steps": [11, 12, 13], "losses": [6.0, 6.0, 6.0], **changes}
    problems = part("training").problems_of_run(run, 10, 3)
    assert len(problems) == bool(problem)
    assert all(problem in found for found in problems)


def test_layers_beyond_their_bounds() -> None:
    bench_layer = load_tool("bench_layer")
    good = {"picks_agreeing": 0.95, "output": 0.1, "lookup": 3e-3, "table_gradient": 3e-3}
    assert bench_layer.problems_of(good, "bf16") == []
    assert len(bench_layer.problems_of(good, "fp32")) == 3
    assert "nan" in bench_layer.problems_of({**good, "lookup": math.nan}, "bf16")[0]


def test_the_reports_name_has_device_and_date(gpu_check: ModuleType) -> None:
    path = gpu_check.default_path("NVIDIA A100-SXM4-80GB")
    assert path.parent == TOOLS.parent / "benchmarks"
    assert path.name.startswith("gpu_check-nvidia-a100-sxm4-80gb-20") and path.suffix == ".json"

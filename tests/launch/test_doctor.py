"""``ultramem doctor``: true rows, a remedy for what keeps a run from starting, and exit code 2."""

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

from ultramem_launch import preflight
from ultramem_launch.preflight import Report, Row, Section, Status
from ultramem_launch.verbs import doctor as verb
from ultramem_megatron.errors import ConfigError
from ultramem_megatron.testing.programs import run_forked

ROOT = Path(__file__).parents[2]

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(verb.doctor)


def row_named(rows: list[Row], name: str) -> Row:
    [row] = [row for row in rows if row.name == name]
    return row


def set_version(monkeypatch: pytest.MonkeyPatch, package: str, version: str | None) -> None:
    """Let pip's records say this of one package; None is not installed."""
    true_version = metadata.version

    def answer(name: str) -> str:
        if name != package:
            return true_version(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", answer)


def write_program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_machine_that_can_run_gives_0_and_tells_what_it_will_use() -> None:
    result = CliRunner().invoke(app, ["--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["can_start"], report["problems"]) == (True, [])
    found = {row["name"]: row["found"] for row in report["rows"]}
    assert found["torch"] == torch.__version__
    assert found["megatron-core"] == metadata.version("megatron-core")
    assert found["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert found["cpu"].startswith(f"{len(os.sched_getaffinity(0))} of ")
    assert found["collectives"] == ("nccl" if torch.cuda.is_available() else "gloo")
    assert {row["section"] for row in report["rows"]} == set(Section)


def test_plain_text_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    report = preflight.inspect_machine(Path.cwd())
    verb.doctor()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [row.name.split()[0] for row in report.rows]
    assert [line for line in lines if line and not line.startswith(" ")] == [section.value for section in Section]


def test_tables_of_a_terminal_show_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row(Section.SOFTWARE, "torch", Status.PROBLEM, "missing", "install it"),
        Row(Section.HARDWARE, "gpu", Status.ABSENT, "[none] here"),
    ]
    verb._print_tables(Report(rows))
    text = capsys.readouterr().out
    assert [line.split() for line in text.splitlines() if line.strip()] == [
        ["software"],
        ["torch", "PROBLEM", "missing"],
        ["hardware"],
        ["gpu", "-", "[none]", "here"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["text", "json"])
def test_a_wrong_apex_gives_2_and_one_paragraph(warm: None, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise SystemExit('apex was imported')")
    program = (
        "import typer; from ultramem_launch import __main__ as cli; from ultramem_launch.verbs.doctor import doctor;"
        "cli.app = typer.Typer(pretty_exceptions_enable=False); cli.app.command()(doctor); cli.main()"
    )
    paths = [tmp_path, ROOT, ROOT / "launch", ROOT / "kernels"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = run_forked([sys.executable, "-c", program, *arguments], env=environment, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    [paragraph] = done.stderr.splitlines()
    assert paragraph.startswith("ConfigError: ")
    assert f"{tmp_path}/apex/__init__.py is not NVIDIA's apex" in paragraph
    if arguments:
        report = json.loads(done.stdout)
        assert not report["can_start"]
        assert report["problems"] == [paragraph.removeprefix("ConfigError: ")]
    else:
        assert "PROBLEM" in done.stdout


@pytest.mark.parametrize(
    ("package", "version", "words"),
    [
        ("torch", None, "torch is not installed in .* >= 2.9, < 3: `pip install 'torch>=2.9,<3'`"),
        ("torch", "2.8.0+cu128", "torch 2.8.0.cu128 in .* is not supported"),
        ("torch", "3.0.0", "torch 3.0.0 in .* is not supported"),
        ("megatron-core", "0.16.0", "megatron-core 0.16.0 in .* needs megatron-core >= 0.16.1, < 0.17"),
        ("megatron-core", "0.17.0rc1", "megatron-core 0.17.0rc1 in .* is not supported"),
    ],
)
def test_a_missing_or_unsupported_package_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, package: str, version: str | None, words: str
) -> None:
    set_version(monkeypatch, package, version)
    with pytest.raises(ConfigError, match=words):
        verb.doctor(as_json=True)


@pytest.mark.parametrize("version", ["2.9.0", "2.11.1+cu130", "2.13.0.dev20261101"])
def test_supported_versions_are_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    set_version(monkeypatch, "torch", version)
    assert preflight.check_package("torch", None) == Row(Section.SOFTWARE, "torch", Status.OK, version)


def test_the_supported_versions_are_those_of_the_package() -> None:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, (lowest, too_new) in preflight.SUPPORTED.items():
        assert f"{name}>={preflight._dotted(lowest)},<{preflight._dotted(too_new)}" in requirements["dependencies"]
    assert requirements["requires-python"] == f">={preflight._dotted(preflight.LOWEST_PYTHON)}"


def test_a_package_that_cannot_be_imported_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_library.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    row = preflight.check_package("torch", "broken_library")
    assert row.status is Status.PROBLEM
    assert "cannot be imported (OSError: libcudart.so.13: cannot open shared object file)" in row.problem
    assert "pip install" in row.problem


def test_without_torch_the_rest_is_still_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_version(monkeypatch, "torch", None)
    report = preflight.inspect_machine(tmp_path)
    assert len(report.problems) == 1
    assert row_named(report.rows, "gpu").found == "not looked for without torch"
    assert str(tmp_path) in row_named(report.rows, "disk").found
    assert not [row for row in report.rows if row.section is Section.CHOICES]


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "LOWEST_PYTHON", (99,))
    assert "is too old; ultramem_megatron needs 99" in preflight.check_python().problem


def test_equal_gpus_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [SimpleNamespace(name=name, total_memory=80 * 2**30) for name in ("A100", "H100", "A100")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(devices))
    monkeypatch.setattr(torch.cuda, "get_device_properties", devices.__getitem__)
    found = [row.found for row in preflight.check_gpus(torch_runs=True)]
    assert found == ["2 x A100, 80.0 GiB each", "1 x H100, 80.0 GiB each"]


def test_a_gpu_that_torch_does_not_see_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    [plain] = preflight.check_gpus(torch_runs=True)
    write_program(tmp_path, "nvidia-smi", "")
    [hint] = preflight.check_gpus(torch_runs=True)
    assert plain.status is hint.status is Status.ABSENT
    assert "nvidia-smi" not in plain.found
    assert "although nvidia-smi is on PATH" in hint.found


def test_slurm_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {row.status for row in preflight.check_slurm()} == {Status.ABSENT}
    write_program(tmp_path, "sbatch", "echo slurm-wlm 22.05.8")
    rows = preflight.check_slurm()
    assert row_named(rows, "sbatch").found == str(tmp_path / "sbatch")
    assert row_named(rows, "slurm").found == "slurm-wlm 22.05.8"
    assert row_named(rows, "srun").status is Status.ABSENT


@pytest.mark.parametrize(
    ("module", "status", "found"),
    [
        ("def Get_library_version():\n    return 'Open MPI v4.1.4'", Status.OK, "4.1.2, Open MPI v4.1.4"),
        (
            "raise RuntimeError('cannot load MPI library')",
            Status.ABSENT,
            "installed, but finds no MPI library; optional",
        ),
        ("import os\nos.abort()", Status.ABSENT, "installed, but finds no MPI library; optional"),
    ],
    ids=["works", "no-library", "aborts"],
)
def test_mpi4py_is_loaded_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, status: Status, found: str
) -> None:
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("__version__ = '4.1.2'\nclass rc: ...")
    (tmp_path / "mpi4py" / "MPI.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    row = row_named(preflight.check_mpi(), "mpi4py")
    assert (row.status, row.found) == (status, found)


def test_without_mpi4py_it_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert row_named(preflight.check_mpi(), "mpi4py").found == "not installed; optional"


def test_importing_the_verb_is_cheap() -> None:
    program = (
        "import sys, ultramem_launch.verbs.doctor, ultramem_launch.preflight;"
        "print(sorted({'torch', 'rich', 'numpy', 'megatron'} & set(sys.modules)))"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "launch")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"

"""``ultramem plan`` and ``ultramem info``: what they print, and that they need no torch."""

import importlib.metadata
import json
import os
import subprocess
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from ultramem_launch.verbs.info import info
from ultramem_launch.verbs.plan import plan
from ultramem_megatron.errors import ConfigError, PlanError
from ultramem_megatron.planning.plan import Plan

ROOT = Path(__file__).parents[2]

LIBRARIES = ("numpy", "pydantic", "pyyaml", "typer")
"""What a login node needs, with what these need themselves."""


@pytest.fixture(scope="module")
def torchless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has this program and ``LIBRARIES``, by links, and nothing else."""
    home = tmp_path_factory.mktemp("torchless")
    venv.create(home, with_pip=False, symlinks=True)
    (site_packages,) = home.glob("lib/python*/site-packages")
    for package in ("ultramem_megatron", "kernels/ultramem_kernels", "launch/ultramem_launch"):
        (site_packages / Path(package).name).symlink_to(ROOT / package)
    for library in closure(LIBRARIES):
        distribution = importlib.metadata.distribution(library)
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (site_packages / name).symlink_to(Path(str(distribution.locate_file(name))))
    return home / "bin" / "python"


def closure(names: Iterable[str]) -> set[str]:
    """With what they require, extras aside."""
    found, ahead = set[str](), list(names)
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            needs = (Requirement(text) for text in importlib.metadata.requires(name) or ())
            ahead += [
                canonicalize_name(need.name)
                for need in needs
                if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return found


def run_without_torch(python: Path, *arguments: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-m", "ultramem_launch", *arguments]
    done = subprocess.run(command, env=kept, cwd=python.parent, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def app() -> typer.Typer:
    verbs = typer.Typer()
    verbs.command()(plan)
    verbs.command()(info)
    return verbs


def run(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_plan_runs_in_an_environment_without_torch(torchless: Path) -> None:
    heavy = ("torch", "megatron", "triton")
    absent = f"import importlib.util as u; print([u.find_spec(name) for name in {heavy}])"
    found = subprocess.run([torchless, "-I", "-c", absent], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[None, None, None]"
    document = run_without_torch(torchless, "plan", "quickstart", "--cluster", "local:4", "--json")
    assert Plan.from_json(document).world_size == 4
    assert "Not modelled." in run_without_torch(torchless, "plan", "quickstart", "--explain")
    assert "Usage: " in run_without_torch(torchless, "--help")


def test_volume_and_sweep_run_without_torch(torchless: Path) -> None:
    assert "662.79 MiB number-wise" in run_without_torch(torchless, "volume")
    assert "512" in run_without_torch(torchless, "sweep", "ultramem-1.6b-x12", "--nodes", "64")


def test_info_runs_without_torch(torchless: Path) -> None:
    facts = json.loads(run_without_torch(torchless, "info", "quickstart", "--json"))
    assert facts["parameters"]["tables"] == 2 * 96**2 * 64


def test_plan_json_is_a_plan_and_save_writes_the_same(app: typer.Typer, tmp_path: Path) -> None:
    out = run(app, "plan", "quickstart", "--json", "--save", str(tmp_path / "plan.json"))
    printed = Plan.from_json(out)
    assert Plan.load(tmp_path / "plan.json") == printed
    assert printed.memory_parallel_size == 4
    assert printed.cluster == "local:4"


def test_overrides_and_cluster_reach_the_plan(app: typer.Typer) -> None:
    out = run(
        app,
        "plan",
        "quickstart",
        "memory.parallel_size=2",
        "training.micro_batch_size=2",
        "--cluster",
        "local:8",
        "--json",
    )
    printed = Plan.from_json(out)
    assert (printed.memory_parallel_size, printed.world_size) == (2, 8)
    assert printed.config_summary["training.micro_batch_size"] == 2


def test_the_short_text_is_part_of_the_long_one(app: typer.Typer, tmp_path: Path) -> None:
    short = run(app, "plan", "quickstart")
    long = run(app, "plan", "quickstart", "--explain")
    assert long.startswith(short.rstrip())
    assert "Candidates." in long and "Candidates." not in short
    assert "Saved to" in run(app, "plan", "quickstart", "--save", str(tmp_path / "p.json"))


def test_info_json(app: typer.Typer) -> None:
    facts = json.loads(run(app, "info", "quickstart", "--json"))
    parameters = facts["parameters"]
    assert list(parameters) == [
        *("dense", "experts", "tables", "norms", "embedding"),
        *("total_without_embedding", "activated"),
    ]
    assert parameters["embedding"] == 2 * 8192 * 128
    assert facts["flops_per_token"] == 2 * parameters["dense"]
    assert sum(facts["dense_parameters"].values()) == parameters["dense"]
    assert facts["memory_bytes"]["tables"] == {
        "weights": 4 * parameters["tables"],
        "gradients": 4 * parameters["tables"],
        "optimizer": 8 * parameters["tables"],
    }
    assert facts["rows_per_token"] == 2 * 16
    assert facts["row_bytes_per_token"] == 2 * 16 * 64 * 4


def test_info_text(app: typer.Typer) -> None:
    text = run(app, "info", "quickstart", "training.precision=bf16")
    assert "memory, bf16" in text
    assert "tables of 9,216 rows; a token reads 32 rows = 4.0 KiB" in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_info_of_a_dense_model(app: typer.Typer) -> None:
    facts = json.loads(run(app, "info", "quickstart", "memory.variant=none", "--json"))
    assert facts["parameters"]["tables"] == facts["table_rows"] == facts["rows_per_token"] == 0
    assert "memory layers: none" in run(app, "info", "quickstart", "memory.variant=none")


def test_bad_input_is_raised_for_the_command_to_print(app: typer.Typer) -> None:
    for arguments, error in (
        (["plan", "quickstart", "--cluster", "local:0"], PlanError),
        (["plan", "quickstart", "--cluster", "local:3"], ConfigError),
        (["plan", "quick", "--json"], ConfigError),
        (["info", "quickstart", "memory.value_dmi=3"], ConfigError),
    ):
        assert isinstance(CliRunner().invoke(app, arguments).exception, error)


@pytest.mark.parametrize("verb", ["plan", "info"])
def test_help_shows_an_example(app: typer.Typer, verb: str) -> None:
    text = run(app, verb, "--help")
    assert f"Example: ultramem {verb} quickstart" in text
    assert "--json" in text

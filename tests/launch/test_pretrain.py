"""The plan of a run: made before anything is started, kept while it fits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ultramem_launch import place
from ultramem_launch.__main__ import app
from ultramem_launch.pretrain import make_plan, warn_of_slow_precision
from ultramem_megatron.errors import ConfigError, LaunchError, PlanError
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.planning.plan import Plan
from ultramem_megatron.testing.tiny import tiny_config, write_tiny_config


def test_a_new_run_is_planned_and_nothing_written(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert make_plan(tiny_config(), run_dir, local_cluster(2)) == choose_plan(tiny_config(), local_cluster(2))
    assert not run_dir.exists()


def test_the_plan_of_the_run_is_kept(tmp_path: Path) -> None:
    pinned = make_plan(
        tiny_config("memory.partition=dimension_wise", "memory.parallel_size=2"), tmp_path, local_cluster(2)
    )
    pinned.save(tmp_path / "plan.json")
    free = make_plan(tiny_config(), tmp_path, local_cluster(2))
    assert free == pinned
    assert free != choose_plan(tiny_config(), local_cluster(2)), "else this shows nothing"


@pytest.mark.parametrize(
    ("overrides", "ranks"), [((), 1), (("memory.partition=number_wise",), 2), (("training.micro_batch_size=1",), 2)]
)
def test_a_plan_that_no_longer_fits_is_made_anew(tmp_path: Path, overrides: tuple[str, ...], ranks: int) -> None:
    make_plan(tiny_config("memory.partition=dimension_wise"), tmp_path, local_cluster(2)).save(tmp_path / "plan.json")
    config = tiny_config(*overrides)
    assert make_plan(config, tmp_path, local_cluster(ranks)) == choose_plan(config, local_cluster(ranks))


@pytest.mark.parametrize("text", ["", "{}", "no json"])
def test_a_damaged_plan_is_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    assert isinstance(make_plan(tiny_config(), tmp_path, local_cluster(2)), Plan)


def test_a_pinned_plan_is_obeyed(tmp_path: Path) -> None:
    config, file = tiny_config(), tmp_path / "pinned.json"
    pinned = choose_plan(tiny_config("memory.partition=dimension_wise", "memory.parallel_size=2"), local_cluster(2))
    pinned.save(file)
    assert choose_plan(config, local_cluster(2)) != pinned, "else this shows nothing"
    choose_plan(config, local_cluster(2)).save(tmp_path / "plan.json")
    assert make_plan(config, tmp_path, local_cluster(2), file) == pinned


def test_a_pinned_plan_of_another_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "pinned.json"
    choose_plan(tiny_config(), local_cluster(2)).save(file)
    with pytest.raises(PlanError, match=r"--plan .*pinned\.json: the plan is for 2 ranks, but the run has 1"):
        make_plan(tiny_config(), tmp_path, local_cluster(1), file)
    with pytest.raises(PlanError, match=r"model\.hidden is 32 there and 64 here"):
        make_plan(tiny_config("model.hidden=64"), tmp_path, local_cluster(2), file)


def test_a_run_on_other_ranks_says_what_changed_and_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = choose_plan(tiny_config("memory.partition=dimension_wise", "memory.parallel_size=2"), local_cluster(2))
    before.save(tmp_path / "plan.json")
    make_plan(tiny_config(), tmp_path, local_cluster(1))
    assert "were dimension_wise over 2 ranks" in caplog.text
    assert "are now replicated" in caplog.text
    assert "the run has 1 ranks and had 2" in caplog.text


def test_what_cannot_be_planned(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.global_batch_size = 4 must be a multiple"):
        make_plan(tiny_config(), tmp_path, local_cluster(4))
    with pytest.raises(PlanError):
        make_plan(tiny_config("memory.keys_per_side=46340", "memory.value_dim=65536"), tmp_path, local_cluster(1))
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match=r"file is a file; name a folder"):
        make_plan(tiny_config(), tmp_path / "file", local_cluster(1))


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in place.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("status", "words"), [(0, "finished"), (75, "saved and stopped"), (1, None), (137, None)])
def test_the_launcher_passes_the_command_on_and_the_status_back(
    no_launcher: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, words: str | None
) -> None:
    started: list[tuple[int, list[str]]] = []

    def launch(processes: int, arguments: list[str], program: object, *, on_killed: object, variables: object) -> int:
        started.append((processes, arguments))
        return status

    monkeypatch.setattr("ultramem_launch.local.run_local_processes", launch)
    config, run_dir = str(write_tiny_config(tmp_path)), str(tmp_path / "run")
    result = CliRunner().invoke(app, ["pretrain", config, "training.steps=9", "--run-dir", run_dir, "--local", "2"])
    assert result.exit_code == status
    assert started == [(2, ["pretrain", config, "training.steps=9", "--run-dir", run_dir])]
    assert "2 processes on this machine" in result.output
    assert ("ultramem monitor --run-dir" in result.output) is (words is not None)
    if words:
        assert words in result.output


@pytest.mark.parametrize(
    ("precision", "device", "supported", "warned"),
    [
        ("bf16", "cpu", False, True),
        ("bf16", "cpu", True, False),
        ("fp32", "cpu", False, False),
        ("bf16", "cuda", False, False),
    ],
)
def test_a_precision_without_instructions_is_warned_of(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    device: str,
    supported: bool,
    warned: bool,
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    warn_of_slow_precision(tiny_config(f"training.precision={precision}"), torch.device(device))
    assert ("training.precision=fp32 is faster here" in caplog.text) is warned


def test_a_rank_trains(no_launcher: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultramem_launch.pretrain.run_rank", lambda config, run_dir, **options: config.training.steps)
    command = ["pretrain", str(write_tiny_config(tmp_path)), "training.steps=9", "--run-dir", str(tmp_path / "run")]
    assert CliRunner().invoke(app, command).exit_code == 9
    monkeypatch.setenv("RANK", "0")
    assert CliRunner().invoke(app, command).exit_code == 9


def test_planning_needs_no_torch(tmp_path: Path) -> None:
    """``--local N`` answers for a bad config at once."""
    script = (
        "import sys; from pathlib import Path; from ultramem_launch.pretrain import make_plan\n"
        "from ultramem_launch.configs import load_config\n"
        "from ultramem_megatron.planning.cluster import local_cluster\n"
        f"make_plan(load_config({str(write_tiny_config(tmp_path))!r}, []), Path('run'), local_cluster(2))\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "pydantic" in loaded
    assert {"torch", "megatron", "numpy"}.isdisjoint(loaded)

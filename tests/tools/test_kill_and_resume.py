"""tools/kill_and_resume: killed runs end with the same bits, and a difference would be noticed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ultramem_megatron.testing.kills import Ending, Phase, difference, phase_of
from ultramem_megatron.testing.programs import ForkedProgram, run_forked
from ultramem_megatron.testing.tiny import write_tiny_config

TOOL = Path(__file__).parents[2] / "tools" / "kill_and_resume"
ENDING = Ending([(1.0, 6.25, 0.5, 1e-3), (2.0, 6.125, 0.5, 1e-3)], {"table": "00", "norm": "01"})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="two ranks of the CPU backend, /proc")
def test_two_kills_one_of_them_during_a_save(warm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", ForkedProgram)  # the runs that it starts are forks, too
    sizes = ["--kills", "2", "--steps", "8", "--interval", "2"]
    command = [sys.executable, str(TOOL), str(write_tiny_config(tmp_path)), *sizes]
    command += ["--json", str(tmp_path / "result.json"), "--folder", str(tmp_path)]
    done = run_forked(command, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("2 of 2 are the same to the bit\n")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["runs"][1]["phase"] in ("copy", "write", "publish")
    assert sum(result["phases"].values()) == 2
    assert [run["difference"] for run in result["runs"]] == ["", ""]
    assert all(run["resumed_from"] <= run["after_step"] <= 8 for run in result["runs"])  # the last save may be meant
    logs = [log.read_text() for log in tmp_path.glob("killed-*.log")]
    assert sum("resumed from" in log for log in logs) == sum(run["resumed_from"] > 0 for run in result["runs"])


@pytest.mark.parametrize(
    ("files", "phase"),
    [
        ([], Phase.TRAINING),
        (["step_00000002/manifest.json"], Phase.TRAINING),
        (["step_00000002/manifest.json", ".unfinished-step_00000004.ab/common.pt"], Phase.COPY),
        (["step_00000002/manifest.json", ".unfinished-step_00000004.ab/__1_0.distcp"], Phase.WRITE),
        ([".unfinished-step_00000004.ab/__1_0.distcp", ".unfinished-step_00000004.ab/.metadata"], Phase.PUBLISH),
        (["step_00000002/manifest.json", "step_00000004/manifest.json"], Phase.PUBLISH),
    ],
)
def test_the_phase_of_a_kill_is_read_from_what_it_left(tmp_path: Path, files: list[str], phase: Phase) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if (tmp_path / "step_00000002").exists():
        (tmp_path / "latest").write_text("step_00000002\n")
    assert phase_of(tmp_path) is phase


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ENDING, ""),
        (replace(ENDING, curve=[ENDING.curve[0], (2.0, 6.125000001, 0.5, 1e-3)]), "step 2: "),
        (replace(ENDING, curve=ENDING.curve[:1]), "2 steps reported instead of 1"),
        (replace(ENDING, digests={"table": "00", "norm": "02"}), "1 tensors differ, the first is norm"),
        (replace(ENDING, digests={"table": "00"}), "1 tensors differ, the first is norm"),
    ],
)
def test_every_number_is_compared(other: Ending, said: str) -> None:
    found = difference(ENDING, other)
    assert found.startswith(said)
    assert bool(found) == bool(said)

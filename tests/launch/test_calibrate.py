"""``ultramem calibrate`` on two processes, and with the output of nccl-tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ultramem_megatron.planning.profile_file import load_profile
from ultramem_megatron.testing.programs import ForkedProgram, run_forked

pytestmark = pytest.mark.usefixtures("warm")  # its forks are the programs

ULTRAMEM = [sys.executable, "-m", "ultramem_launch", "calibrate"]


def calibrate(*options: str) -> "subprocess.CompletedProcess[str]":
    return run_forked([*ULTRAMEM, *options])


@pytest.mark.slow
def test_two_processes_measure_themselves_and_go_on_after_a_stop(tmp_path: Path) -> None:
    out = tmp_path / "here.json"
    partial = tmp_path / "here.json.partial"
    command = [*ULTRAMEM, "--local", "2", "--quick", "--out", str(out)]
    first = ForkedProgram(command, stderr=subprocess.PIPE, text=True)
    while not partial.exists():
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not out.exists()
    again = calibrate("--local", "2", "--quick", "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert " stream;" not in again.stderr  # that step was in the file
    assert not partial.exists()
    profile = load_profile(out)
    assert (profile.name, profile.ranks_per_node) == ("here", 2)
    assert profile.fit is not None
    assert profile.fit.fingerprint["processes"] == 2
    curve = profile.node.all_to_all.curves[0]
    assert curve.ranks == 2
    assert curve.seconds(1e7) > curve.seconds(1e3)


def test_nccl_tests_need_a_base(tmp_path: Path) -> None:
    found = calibrate("--nccl-tests", str(tmp_path / "all_gather.txt"), "--out", str(tmp_path / "p.json"))
    assert found.returncode == 2
    assert "--base dgx-a100-80g" in found.stderr

"""tools/screenshot_tensorboard: curves on a page of a real browser; skipped where there is none."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ultramem_megatron.monitor.sinks import TensorBoardSink

TOOL = Path(__file__).parents[2] / "tools" / "screenshot_tensorboard"


def photograph(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no Chromium on the PATH")
    sink = TensorBoardSink(tmp_path / "run" / "tensorboard")
    for step in range(1, 31):
        sink.write(step, {"train/loss": 6.0 / step, "memory/output_std/layer0": 0.1 * step})
    sink.close()

    done = photograph(tmp_path / "run", tmp_path / "run.png")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run.png").read_bytes()[:4] == b"\x89PNG"
    assert int(done.stdout.rpartition("(")[2].split()[0]) >= 2  # "... (12 curves)"


def test_a_size_that_is_none_is_refused(tmp_path: Path) -> None:
    done = photograph(tmp_path, tmp_path / "run.png", "--size", "1600")
    assert done.returncode == 2
    assert done.stderr == "LaunchError: --size 1600 is not WIDTHxHEIGHT in pixels, as in 1600x1500\n"

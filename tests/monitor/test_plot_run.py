"""tools/plot_run: a picture with something in it, and errors in words."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from ultramem_megatron.monitor.sinks import JsonlSink
from ultramem_megatron.testing.programs import run_forked

TOOL = Path(__file__).parents[2] / "tools" / "plot_run"


def write_run(folder: Path) -> Path:
    sink = JsonlSink(folder / "metrics.jsonl")
    for step in range(1, 61):
        sink.write(step, {"train/loss": 6.0 / step, "train/consumed_tokens": 100.0 * step})
        if step % 20 == 0:
            sink.write(step, {"validation/loss": 6.5 / step, "validation/loss/moby": 6.5 / step})
    sink.write(61, {"train/loss": float("nan"), "train/consumed_tokens": 6100.0})
    sink.close()
    return folder


def plot(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    import matplotlib.pyplot  # noqa: F401  once, for all forks

    return run_forked([sys.executable, str(TOOL), *map(str, arguments)])


def num_distinct_bytes(png: Path) -> int:
    """Distinct byte values among the pixels: an empty page has one or two."""
    data, position, packed = png.read_bytes(), 8, b""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        if data[position + 4 : position + 8] == b"IDAT":
            packed += data[position + 8 : position + 8 + length]
        position += length + 12
    return len(set(zlib.decompress(packed)))


@pytest.mark.parametrize("x_axis", ["step", "tokens", "hours"])
def test_curves_of_two_runs(tmp_path: Path, x_axis: str) -> None:
    runs = [write_run(tmp_path / "dense"), write_run(tmp_path / "ultramem")]
    picture = tmp_path / "pictures" / "losses.png"
    done = plot(*runs, "--x", x_axis, "--metric", "train/loss", "--metric", "validation/loss", "--output", picture)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{picture}\n", "")
    assert num_distinct_bytes(picture) > 50


def test_an_unknown_metric_is_answered_with_the_known(tmp_path: Path) -> None:
    done = plot(write_run(tmp_path / "run"), "--metric", "train/lost", "--output", tmp_path / "x.png")
    assert done.returncode == 2
    assert done.stderr.startswith("DataError: no run holds train/lost; `--metric` takes one of train/loss, ")
    assert not (tmp_path / "x.png").exists()


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    done = plot(tmp_path, "--output", tmp_path / "x.png")
    assert done.returncode == 2
    assert f"{tmp_path}/metrics.jsonl does not exist" in done.stderr

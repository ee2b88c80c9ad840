"""``tools/bench_kernels`` runs, compares and writes what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ultramem_megatron.testing.programs import run_forked

pytestmark = pytest.mark.usefixtures("warm")  # its forks are the programs

TOOL = Path(__file__).parents[2] / "tools" / "bench_kernels"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_forked([sys.executable, str(TOOL), *arguments])


@pytest.mark.slow
def test_a_layer_is_measured_and_equals_plain_pytorch(tmp_path: Path) -> None:
    out, picture = tmp_path / "layer.json", tmp_path / "layer.png"
    words = ("--cpu", "--side", "24", "--tokens", "40", "--repeats", "2", "--against-checkout", str(TOOL.parents[1]))
    done = run(*words, "--json", str(out), "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["problems"] == []
    assert [row["name"].split(",")[0] for row in report["layers"]][:3] == ["ultramem_megatron", *["plain PyTorch"] * 2]
    assert report["layers"][0]["times_ours"] == 1 and all(row["both"] > 0 for row in report["layers"])
    assert "| layer | ultramem_megatron |" in done.stdout
    assert report["products"][0]["both"] > 0 and "| of ours | its dense products alone |" in done.stdout
    assert len(report["lookups"]) == 2 and "| lookup alone | ultramem_megatron |" in done.stdout
    assert [row["name"] for row in report["checkouts"]] == ["ultramem_megatron", f"checkout {TOOL.parents[1].name}"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_step_of_a_table_is_measured_and_equals_adamw() -> None:
    done = run("--cpu", "--update", "4096", "--repeats", "1", "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["error"] < 1e-3
    assert [line["who"] for line in report["lines"]][:3] == [
        "ultramem",
        *(f"torch AdamW {kind}, dense" for kind in ("fused", "foreach")),
    ]
    assert len({line["what"] for line in report["lines"]}) == 5


@pytest.mark.slow
def test_every_kernel_is_measured_with_its_error(tmp_path: Path) -> None:
    out, peer = tmp_path / "kernels.json", ("--peer", "kernel_bench.peers:embedding_bag")
    done = run("--model", "tiny", "--tokens", "16", "--repeats", "1", "--json", str(out), *peer)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    ours = [line for line in report["lines"] if line["who"] == "ultramem"]
    phases = {"forward", "backward", "products", "update", "stage 1", "stage 2", "gradient 2"}
    assert {line["phase"] for line in ours} == phases
    assert any(line["who"].startswith("kernel_bench.peers:embedding_bag") for line in report["lines"])
    assert {line["draw"] for line in ours} == {"uniform", "zipf", "equal", "dense", "tenth", "normal"}
    assert all(line["error"] is not None and line["error"] <= 1e-2 for line in ours if line["phase"] != "update")


def test_a_machine_without_a_gpu_is_told_what_it_can_do() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    done = run("--model", "151m-x12")
    assert done.returncode == 2 and "torch sees no CUDA device; --cpu measures" in done.stderr


def test_another_checkout_must_be_one(tmp_path: Path) -> None:
    done = run("--cpu", "--against-checkout", str(tmp_path))
    assert done.returncode == 2 and "names a folder that has ultramem_megatron/ in it" in done.stderr

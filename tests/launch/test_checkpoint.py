"""``ultramem checkpoint``: what it prints, and with which status it ends."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from ultramem_launch.__main__ import app
from ultramem_launch.verbs.checkpoint import TableCut
from ultramem_megatron.checkpoint.set_aside import MARK, set_aside
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.errors import CheckpointError, ConfigError
from ultramem_megatron.testing.layouts import Layout, train_layout
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA"),
]

Verb = Callable[..., str]


@pytest.fixture(scope="module")
def saved(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint of step 1, written by two ranks with the table split by rows."""
    run_dir = tmp_path_factory.mktemp("run")
    layout = Layout("2", 2, ("memory.partition=number_wise", "memory.parallel_size=2"))
    train_layout(tiny_config("training.stop_after=1"), layout, save=run_dir / "checkpoints")
    return run_dir


@pytest.fixture
def verb() -> Verb:
    """``verb("info", ...)``: its output; what it refuses is raised."""

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_info_in_words_and_as_json(saved: Path, verb: Verb) -> None:
    text = verb("info", saved)
    assert "step 1, 4 samples, 128 tokens" in text
    assert "written by 2 ranks; tables number_wise over 2" in text
    assert "memory.layers.0: 256 x 16 float32, 16.0 KiB and 48.0 KiB of optimizer state, 2 pieces in 2 files" in text
    facts = json.loads(verb("info", saved / "checkpoints", "--json"))
    assert facts["folder"] == str(saved / "checkpoints" / "step_00000001")
    assert (facts["step"], facts["consumed_tokens"], facts["world_size"]) == (1, 128, 2)
    (table,) = facts["tables"]
    assert (table["rows"], table["columns"], table["bytes"], table["optimizer_bytes"]) == (256, 16, 16384, 3 * 16384)
    assert facts["bytes"] > facts["dense"]["bytes"] + facts["optimizer_bytes"] + table["bytes"]
    assert (facts["verifiable"], facts["set_aside"]) == (True, [])
    set_aside(saved / "checkpoints" / "step_00000001", "2 starts from it failed")
    try:
        words = f"is set aside: 2 starts from it failed; to use it all the same, remove {facts['folder']}/SET_ASIDE\n"
        assert verb("info", saved).endswith(words)
        assert "files and" in verb("verify", saved), "the mark is no damage"
    finally:
        (saved / "checkpoints" / "step_00000001" / MARK).unlink()


def test_verify_and_reshard(saved: Path, verb: Verb, tmp_path: Path) -> None:
    assert "files and" in verb("verify", saved)
    out = verb("reshard", saved, "--out", tmp_path / "out", "--ranks", 3, "--partition", "dimension_wise").strip()
    assert out == str(tmp_path / "out" / "step_00000001")
    assert "tensors are what was written" in verb("verify", out)
    assert json.loads(verb("info", out, "--json"))["tables"][0]["files"] == 3
    verdict = json.loads(verb("verify", out, "--json"))
    assert verdict["damage"] == []
    assert verdict["tensors"] > 20


def test_every_partition_that_cuts_may_be_named(saved: Path, verb: Verb, tmp_path: Path) -> None:
    whole = (PartitionName.AUTO, PartitionName.REPLICATED)
    assert [cut.value for cut in TableCut] == [name.value for name in PartitionName if name not in whole]
    to = ("--out", tmp_path, "--ranks", 6, "--partition", "grid")
    table = json.loads(verb("info", verb("reshard", saved, *to, "--node-size", 2).strip(), "--json"))["tables"][0]
    assert (table["pieces"], table["files"]) == (6, 6)
    with pytest.raises(CheckpointError, match=r"--partition grid needs --node-size"):
        verb("reshard", saved, *to)
    with pytest.raises(ConfigError, match=r"the ranks of a node = 4 must divide the ranks that share a table = 6"):
        verb("reshard", saved, *to, "--node-size", 4)


def test_verify_names_what_has_changed(saved: Path, verb: Verb, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "checkpoints" / "step_00000001", tmp_path / "step_00000001"))
    content = bytearray((folder / "__1_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "__1_0.distcp").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"step_00000001 is damaged: __1_0\.distcp has changed.*content of .*weight"
    ):
        verb("verify", folder)


def test_a_folder_without_checkpoints(verb: Verb, tmp_path: Path) -> None:
    for name in ("info", "verify"):
        with pytest.raises(CheckpointError, match=r"holds no checkpoint; name a checkpoint"):
            verb(name, tmp_path)

"""The config that a run leaves behind holds from any folder."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from ultramem_megatron.config.load import to_yaml
from ultramem_megatron.errors import DataError
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")
SETTINGS = ("data.synthetic=false", "data.folder=data")


def test_a_run_saves_whole_paths(megatron: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.pretrain import write_run_files
    from ultramem_megatron.training.trained_model import load_settings

    monkeypatch.chdir(tmp_path)
    config = tiny_config(*SETTINGS, "checkpoint.load=before/checkpoints")
    run_distributed(1, write_run_files, config, choose_plan(config, local_cluster(1)), tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    saved = load_settings(tmp_path / "run")
    assert saved.data.folder == f"{tmp_path}/data"
    assert saved.checkpoint.load == f"{tmp_path}/before/checkpoints"


def test_an_older_run_finds_its_data(megatron: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultramem_megatron.training.trained_model import _tokenizer_of, load_settings

    (tmp_path / "project" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "project" / "data").mkdir()
    run_dir = tmp_path / "project" / "runs" / "one"
    (run_dir / "config.yaml").write_text(to_yaml(tiny_config(*SETTINGS)))
    monkeypatch.chdir("/")
    config = load_settings(run_dir)
    assert config.data.folder == f"{tmp_path}/project/data"
    with pytest.raises(DataError, match=r"data/tokenizer\.json does not exist, and run .*one was trained with it; put"):
        _tokenizer_of(run_dir, config)

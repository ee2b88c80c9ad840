"""Text from a run: the same for the same seed, and a clear word where there is nothing to read."""

import json
import random
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from ultramem_launch.__main__ import app
from ultramem_megatron.config.load import to_yaml
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import CheckpointError, DataError
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")

TREES = ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple"]


def train(config: RunConfig, run_dir: Path) -> None:
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.pretrain import pretrain

    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    pretrain(config, plan, run_dir, torch.device("cpu"))


def write(run_dir: Path, draws: list[tuple[int, float, int]]) -> list[str]:
    """One text for each (tokens, temperature, seed)."""
    from ultramem_megatron.training.trained_model import open_trained_model

    model = open_trained_model(run_dir, torch.device("cpu"))
    return [
        model.continue_text("ash birch", tokens=tokens, temperature=temperature, seed=seed)
        for tokens, temperature, seed in draws
    ]


@pytest.fixture(scope="module")
def trained(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks with the table split by rows, on a folder of one small source."""
    from ultramem_megatron.data.build import build
    from ultramem_megatron.data.tokenizer import make_tokenizer

    for module in ("ultramem_megatron.training.pretrain", "torch.utils.tensorboard"):
        import_module(module)  # once, before the forks
    root = tmp_path_factory.mktemp("generate")
    draw = random.Random(0)
    (root / "raw").mkdir()
    texts = [" ".join(draw.choices(TREES, k=40)) for _ in range(300)]
    lines = [json.dumps({"id": f"trees/{number}", "text": text}) for number, text in enumerate(texts)]
    (root / "raw" / "trees.jsonl").write_text("\n".join(lines) + "\n")
    make_tokenizer(root / "raw", root / "out", 300)
    build(root / "raw", root / "out", workers=1)
    config = tiny_config(
        *(f"data.folder={root / 'out'}", "data.synthetic=false", "model.vocab_size=300", "training.steps=2"),
        *("memory.partition=number_wise", "memory.parallel_size=2"),
    )
    run_distributed(2, train, config, root / "run")
    return root / "run"


@pytest.mark.slow
def test_text_depends_on_the_seed_alone(trained: Path) -> None:
    draws = [(12, 0.8, 1), (12, 0.8, 1), (12, 0.8, 2), (12, 0.0, 1), (12, 0.0, 2), (40, 0.8, 1)]
    (texts,) = run_distributed(1, write, trained, draws)
    same, again, other, likeliest, likeliest_again, longer = texts
    assert same == again != other
    assert likeliest == likeliest_again
    assert longer.startswith(same), "40 tokens go beyond the 32 of a sample"
    assert len(longer) > len(same) > 0


@pytest.mark.slow
def test_a_run_without_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((trained / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match=r"has no checkpoint yet; train it with `ultramem pretrain`$"):
        run_distributed(1, write, tmp_path, [])


@pytest.mark.slow
def test_generated_tokens_have_no_words(megatron: ModuleType, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_distributed(1, train, tiny_config("training.steps=1", f"data.folder={tmp_path / 'none'}"), run_dir)
    with pytest.raises(DataError, match=r"none/tokenizer\.json does not exist"):
        run_distributed(1, write, run_dir, [])


def test_no_run(megatron: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--run-dir .*nowhere holds no config\.yaml; name the folder of a run$"):
        run_distributed(1, write, tmp_path / "nowhere", [])


@pytest.mark.parametrize("option", [("--tokens", "0"), ("--temperature", "-1")])
def test_wrong_usage(tmp_path: Path, option: tuple[str, str]) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(tiny_config()))
    result = CliRunner().invoke(app, ["generate", "--run-dir", str(tmp_path), *option])
    assert result.exit_code == 2
    assert option[0] in result.output

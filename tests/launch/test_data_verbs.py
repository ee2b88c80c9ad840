"""The verbs of `ultramem data`, as typed, on text that lies on the disk already."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ultramem_launch.verbs.data import app
from ultramem_megatron.errors import DataError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("alpha", "beta"):
        lines = [{"id": f"{name}/{n}", "text": f"{name} says {n} and {n + 1} words"} for n in range(200)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_tokenizer_build_and_info_make_and_describe_a_folder(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = run("tokenizer", "--raw", raw, "--out", out, "--vocab-size", "280")
    assert printed.strip() == str(out / "tokenizer.json")
    built = json.loads(run("build", "--raw", raw, "--out", out, "--workers", "1", "--json"))
    assert sorted(built["sources"]) == ["alpha", "beta"]
    assert built["vocab_size"] == 280
    assert built["sources"]["alpha"]["train"]["documents"] > 180
    assert json.loads(run("info", out, "--json")) == built
    table = run("info", out)
    assert "alpha" in table
    assert f"{built['train_tokens']:,} training tokens, vocabulary 280" in table.replace("\n", " ")


def test_sources_may_be_chosen(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("tokenizer", "--raw", raw, "--out", out, "--vocab-size", "280", "--sources", "alpha")
    built = json.loads(run("build", "--raw", raw, "--out", out, "--workers", "1", "--sources", "beta", "--json"))
    assert list(built["sources"]) == ["beta"]


def test_what_the_user_can_mend_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ultramem data prepare"):
        run("info", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r'the nearest is "core"'):
        run("fetch", "--source", "cor", "--out", tmp_path)


@pytest.mark.parametrize("verb", ["fetch", "tokenizer", "build", "prepare", "info"])
def test_help_has_an_example(verb: str) -> None:
    assert f"ultramem data {verb}" in " ".join(run(verb, "--help").split())


def test_importing_the_verbs_imports_nothing_heavy() -> None:
    code = (
        "import sys, ultramem_launch.verbs.data\n"
        "heavy = {'torch', 'megatron', 'numpy', 'tokenizers', 'rich.progress'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    launch = Path(__file__).parents[2] / "launch"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": f"{launch}:{launch.parent}"}
    )
    assert result.returncode == 0, result.stderr

"""`ultramem eval` as typed: facts that were learnt are recalled, and what is missing is named with its remedy."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.testing import CliRunner

from ultramem_launch.__main__ import app
from ultramem_launch.place import RANK_VARIABLES
from ultramem_megatron.config.load import to_yaml
from ultramem_megatron.errors import DataError, LaunchError
from ultramem_megatron.testing.programs import run_forked
from ultramem_megatron.testing.tiny import tiny_config

Ultramem = Callable[..., "subprocess.CompletedProcess[str]"]

FACTS = 20
MODEL = {"layers": 2, "hidden": 64, "heads": 2, "ffn_hidden": 128, "seq_length": 64, "vocab_size": 300}
STEPS = 170
TRAINING = {"steps": STEPS, "global_batch_size": 16, "micro_batch_size": 16, "precision": "fp32", "eval_interval": 0}


@pytest.fixture
def ultramem(warm: None, tmp_path: Path) -> Ultramem:
    """``ultramem(*arguments)``: the command in ``tmp_path``, as a fork of this process."""
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "ultramem_launch", *arguments]
        return run_forked(command, cwd=tmp_path, env={**environment, "PYTHONWARNINGS": "ignore"})

    return run


def make_data(folder: Path) -> None:
    """A tokenizer of other text, and the facts."""
    draw = random.Random(0)
    words = ["The", "number", "of", "To", "reach", "dial", "You", "can", "call", "on", "has", "If", "you", "need", "is"]
    digits = [str(digit) for digit in range(10)]
    texts = [" ".join(draw.choices([*words, *digits], k=30)) for _ in range(300)]
    (folder / "raw").mkdir()
    lines = [json.dumps({"id": f"other/{number}", "text": text}) for number, text in enumerate(texts)]
    (folder / "raw/other.jsonl").write_text("\n".join(lines) + "\n")
    places = ["--raw", str(folder / "raw"), "--out", str(folder / "data")]
    facts = ["--task", "phonebook", "--facts", str(FACTS), "--workers", "1", "--json"]
    for typed in (["tokenizer", *places, "--vocab-size", "300"], ["recall", *places, *facts]):
        result = CliRunner().invoke(app, ["data", *typed], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tasks"]["phonebook"]["facts"] == FACTS


@pytest.mark.slow
def test_twenty_facts_are_learnt_and_recalled_in_other_words(ultramem: Ultramem, tmp_path: Path) -> None:
    make_data(tmp_path)
    settings = {
        "model": MODEL,
        "training": TRAINING,
        "memory": {"variant": "none"},
        "optimizer": {"learning_rate": 4e-3},
        "data": {"folder": "data"},
        "checkpoint": {"interval": STEPS},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    trained = ultramem("pretrain", "run.yaml", "--run-dir", "run")
    assert trained.returncode == 0, trained.stderr

    result = ultramem("eval", "--run-dir", "run", "--task", "phonebook", "--json")
    assert result.returncode == 0, result.stderr
    assert "phonebook ..." in result.stderr
    (found,) = json.loads(result.stdout)
    assert json.loads((tmp_path / "run/eval/phonebook.json").read_text()) == found
    assert (found["step"], found["consumed_tokens"]) == (STEPS, STEPS * 16 * 64)
    assert (found["questions"], found["chance"]) == (FACTS, 0.25)
    assert found["accuracy"] > 0.25 + 4 * (0.25 * 0.75 / FACTS) ** 0.5  # four standard deviations of guessing
    assert found["normalised_accuracy"] == found["accuracy"], "all numbers are of one length"
    assert 0 < found["nats"] < 2.3, "ten digits at random: log 10 = 2.30"


@pytest.mark.slow
def test_a_missing_task_is_one_paragraph(ultramem: Ultramem, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(to_yaml(tiny_config("data.synthetic=false", "data.folder=data")))
    result = ultramem("eval", "--run-dir", "run", "--task", "phonebook", "--json")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        "DataError: data folder data has no task phonebook (data/tasks/phonebook.jsonl); make it with "
        "`ultramem data recall --task phonebook --out data`, and train on it"
    )


def test_tables_show_the_numbers(megatron: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    from ultramem_launch.verbs.eval import print_tables
    from ultramem_megatron.training.evaluate import LossEvaluation, RecallEvaluation

    recall = RecallEvaluation(
        task="world",
        step=9,
        consumed_tokens=12_345,
        questions=1000,
        accuracy=0.61,
        standard_error=0.0154,
        normalised_accuracy=0.66,
        chance=0.25,
        nats=1.5,
    )
    loss = LossEvaluation(task="loss", step=9, consumed_tokens=12_345, loss=3.5, source_losses={"alpha": 3, "beta": 4})
    print_tables([recall, loss])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["world", "1,000", "0.610", "±", "0.015", "0.660", "0.25", "1.500"] in lines
    assert ["alpha", "3.0000"] in lines
    assert ["mean", "3.5000"] in lines
    assert lines[-1] == ["step", "9,", "12,345", "training", "tokens"]


def test_an_unknown_task_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r'"wrld" is no task; there are phonebook, .*, loss, and the nearest is "world"'
    ):
        CliRunner().invoke(app, ["eval", "--run-dir", str(tmp_path), "--task", "wrld"], catch_exceptions=False)


@pytest.mark.parametrize("options", [(), ("--task", "loss", "--questions", "0")])
def test_wrong_usage(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["eval", "--run-dir", str(tmp_path), *options])
    assert result.exit_code == 2
    assert ("--questions" if options else "--task") in result.output


def test_works_on_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(LaunchError, match=r"`ultramem eval` works on one process"):
        CliRunner().invoke(app, ["eval", "--run-dir", str(tmp_path), "--task", "loss"], catch_exceptions=False)

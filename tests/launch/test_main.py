"""The command as a whole: quick, helpful, and brief about what the user can mend."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ultramem_launch.__main__ import app
from ultramem_launch.configs import recipe_names

HEAVY = {"torch", "megatron", "numpy", "triton", "pydantic", "tensorboard", "rich.console"}


def verbs() -> list[tuple[str, ...]]:
    """The words of every verb, sub-verbs included."""

    def walk(command: Any, words: tuple[str, ...]) -> list[tuple[str, ...]]:
        if not hasattr(command, "commands"):
            return [words]
        return [verb for name, inner in command.commands.items() for verb in walk(inner, (*words, name))]

    return walk(typer.main.get_command(app), ())


def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ultramem_launch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


def test_help_loads_nothing_heavy() -> None:
    """What keeps it quick: 0.1 s on a quiet machine (2 cores, 2026-11-23). A time would not hold on a busy one."""
    script = (
        "import sys; from ultramem_launch.__main__ import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr.split()
    assert "typer" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_all_verbs_are_listed() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    top = {words[0] for words in verbs()}
    assert {"doctor", "info", "plan", "pretrain", "generate", "monitor", "recipes", "data"} <= top
    assert all(f"  {verb} " in text for verb in top)


@pytest.mark.parametrize("words", verbs(), ids=" ".join)
def test_every_verb_shows_an_example(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert f"Example: ultramem {' '.join(words)}" in " ".join(result.output.split())


def test_a_mistake_is_one_paragraph_and_the_traceback_only_on_request() -> None:
    plain = run("plan", "quikstart")
    assert plain.returncode == 2
    assert plain.stdout == ""
    assert plain.stderr == (
        'ConfigError: CONFIG "quikstart" is neither a YAML file nor a recipe; the nearest recipe is "quickstart"\n'
    )
    debug = run("--debug", "plan", "quikstart")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert "the nearest recipe is" in debug.stderr


def test_a_rank_leaves_its_paragraph_in_a_file(tmp_path: Path) -> None:
    error = tmp_path / "error"
    result = run("plan", "quikstart", ULTRAMEM_ERROR_FILE=str(error))
    assert result.returncode == 2
    assert result.stderr == ""
    assert error.read_text().startswith("ConfigError: CONFIG")


def test_recipes() -> None:
    assert json.loads(CliRunner().invoke(app, ["recipes", "--json"]).output) == recipe_names()
    lines = CliRunner().invoke(app, ["recipes"]).output.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert "A small GPT with two UltraMem layers" in lines[recipe_names().index("quickstart")]


@pytest.mark.parametrize(
    "arguments",
    [["pretrain", "quickstart"], ["nonsense"], ["pretrain", "quickstart", "--local", "-1", "--run-dir", "x"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.output

"""tools/fuzz_config: what it makes, what it takes for a fault, and a short part of what it does in full."""

import json
import os
import sys
import time
from collections import Counter
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import ConfigError
from ultramem_megatron.testing.tiny import tiny_config

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))  # as it is for a script started there

from config_fuzz import judge as judging  # noqa: E402
from config_fuzz.cases import FIELDS, SPREAD, Case, Kind, make_case  # noqa: E402
from config_fuzz.judge import Fault, Result, Verdict, ask_command, can_be_typed, judge  # noqa: E402
from config_fuzz.pool import judge_all  # noqa: E402

SEED = 20261201


def good(number: int = 0) -> Case:
    """The tiny run as it is."""
    return Case(number, Kind.SOUND, {"run.yaml": make_case(1, 0).files["run.yaml"]})


def test_a_case_is_made_from_seed_and_number() -> None:
    assert [make_case(7, n) for n in range(60)] == [make_case(7, n) for n in range(60)]
    assert [make_case(7, n) for n in range(60)] != [make_case(8, n) for n in range(60)]
    assert {make_case(7, n).kind for n in range(len(SPREAD))} == set(Kind)


def test_all_fields_have_their_turn() -> None:
    values = [
        make_case(7, n) for n in range(len(SPREAD) * len(FIELDS) // 8 + len(SPREAD)) if SPREAD[n % 20] is Kind.VALUE
    ]
    text = "\n".join([*(" ".join(case.overrides) for case in values), *map(repr, values)])
    missing = [
        f"{section}.{name}"
        for section, name, _ in FIELDS
        if f"{section}.{name}" not in text and f"{section}: {{{name}:" not in text
    ]
    assert missing == []


def test_a_short_part_of_it(tmp_path: Path) -> None:
    kinds: Counter[tuple[Kind, Result]] = Counter()
    for number in range(160):
        folder = tmp_path / str(number)
        folder.mkdir()
        case = make_case(SEED, number)
        verdict = judge(case, folder)
        assert verdict.faults == [], f"{case}: {verdict.words}"
        assert verdict.words or verdict.result is Result.PLANNED, "a refusal has its words"
        kinds[case.kind, verdict.result] += 1
    assert kinds[Kind.SOUND, Result.PLANNED] > 6
    assert all(kinds[kind, Result.REFUSED] > 0 for kind in Kind)


def test_what_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faults_when(reads: object) -> list[Fault]:
        monkeypatch.setattr(judging, "load_config", reads)
        return judge(good(), tmp_path).faults

    def refuse(words: str) -> object:
        def reads(*_: object) -> RunConfig:
            raise ConfigError(words)

        return reads

    def crash(*_: object) -> RunConfig:
        raise KeyError("maybe")

    assert faults_when(judging.load_config) == []
    assert faults_when(crash) == [Fault.TRACEBACK]
    assert faults_when(refuse("\x1b[2J" + "x" * 5000)) == [], "what is printed is one line of a terminal"
    monkeypatch.setattr(judging, "load_run_config", lambda _: tiny_config("training.seed=5"))
    assert faults_when(lambda *_: tiny_config()) == [Fault.NOT_THE_SAME]
    monkeypatch.setattr(judging, "one_paragraph", str)
    assert faults_when(refuse("\x1b[2J")) == [Fault.CONTROL_CHARACTERS]
    assert faults_when(refuse("x" * 5000)) == [Fault.LONG]
    monkeypatch.setattr(judging, "MOST_SECONDS", 0.0)
    assert faults_when(refuse("no")) == [Fault.SLOW]


def test_a_case_that_hangs_or_kills_its_process_is_told(tmp_path: Path) -> None:
    def odd(case: Case, folder: Path) -> Verdict:
        if case.number == 2:
            time.sleep(60)
        if case.number == 4:
            os._exit(9)
        return Verdict(case.number, Result.REFUSED, "as it should")

    found = {verdict.number: verdict.faults for verdict in judge_all(good, range(7), odd, 2, most_seconds=0.5)}
    assert found == {0: [], 1: [], 2: [Fault.SLOW], 3: [], 4: [Fault.TRACEBACK], 5: [], 6: []}


needs_forks = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")


@needs_forks
def test_two_steps(megatron: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from config_fuzz import trial

    assert trial.is_small(tiny_config())
    assert not trial.is_small(tiny_config("model.layers=4096"))
    assert not trial.is_small(tiny_config("training.global_batch_size=131072"))
    assert trial.train(tiny_config("training.steps=1000000000"), tmp_path / "a") == ("trained", "")
    outcome, words = trial.train(tiny_config("data.synthetic=false", "data.folder=nowhere"), tmp_path / "b")
    assert outcome == "refused" and words.startswith("DataError: data.folder = nowhere does not exist; ")
    monkeypatch.setattr(trial, "pretrain", lambda *_: None)
    assert trial.train(tiny_config(), tmp_path / "c") == ("crashed", "0 of 2 steps are recorded")
    monkeypatch.setattr(trial, "pretrain", lambda *_: 1 // 0)
    outcome, words = trial.train(tiny_config(), tmp_path / "d")
    assert outcome == "crashed" and "ZeroDivisionError" in words


@pytest.mark.slow
def test_the_command_is_asked(tmp_path: Path) -> None:
    bad = Case(1, Kind.VALUE, good().files, overrides=["model.layers=\x1b[2J"])
    assert can_be_typed(bad) and not can_be_typed(Case(1, Kind.VALUE, {}, overrides=["a=\0"]))
    assert ask_command(bad, judge(bad, tmp_path), tmp_path) == []
    taken = Verdict(1, Result.PLANNED)
    assert ask_command(bad, taken, tmp_path) == [Fault.NOT_AS_THE_COMMAND]
    assert ask_command(good(), judge(good(), tmp_path), tmp_path) == []


@pytest.mark.slow
@needs_forks
def test_the_tool(megatron: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = SourceFileLoader("tool_fuzz_config", str(TOOLS / "fuzz_config"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    tool = module_from_spec(spec)
    loader.exec_module(tool)
    out = tmp_path / "out.json"
    words = ["--cases", "60", "--seed", "3", "--train", "2", "--commands", "1", "--processes", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["fuzz_config", *words])
    assert tool.main() == 0
    report = json.loads(out.read_text())
    assert (report["cases"], report["bad"], set(report["faults"].values())) == (60, [], {0})
    assert report["trained_two_steps"].get("trained", 0) + report["trained_two_steps"].get("refused", 0) == 2
    assert report["through_the_command"] == 1

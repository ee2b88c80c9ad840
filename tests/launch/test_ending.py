"""``status.json``: the first who knows says why a run ended."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ultramem_launch import exit_codes
from ultramem_launch.__main__ import app
from ultramem_launch.ending import (
    RULES,
    STATUS_FILE,
    Ending,
    Outcome,
    clear_ending,
    failures_recorded,
    read_ending,
    record_ending,
    replace_ending,
)
from ultramem_megatron.errors import ConfigError, MeetingError, RankLostError


def test_the_first_to_say_it_is_right(tmp_path: Path) -> None:
    first = Ending(outcome=Outcome.HUNG, reason="rank 3 stands still", rank=0, attempt="7.0")
    assert record_ending(tmp_path, first)
    assert not record_ending(tmp_path, Ending(outcome=Outcome.FAILED, reason="connection closed", rank=2))
    assert read_ending(tmp_path) == first
    assert json.loads((tmp_path / STATUS_FILE).read_text())["exit_status"] == exit_codes.HUNG
    assert [file.name for file in tmp_path.iterdir()] == [STATUS_FILE], "nothing else is left behind"


def test_a_new_start_forgets_and_the_script_may_know_better(tmp_path: Path) -> None:
    record_ending(tmp_path, Ending(outcome=Outcome.FAILED, reason="connection closed"))
    lost = Ending(outcome=Outcome.NODE_LOST, reason="n2 no longer answers")
    replace_ending(tmp_path, lost)
    assert read_ending(tmp_path) == lost
    clear_ending(tmp_path)
    assert read_ending(tmp_path) is None
    clear_ending(tmp_path)  # raises nothing


def test_without_a_run_folder_nothing_is_written(tmp_path: Path) -> None:
    assert not record_ending(tmp_path / "run", Ending(outcome=Outcome.BAD_INPUT))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"outcome": "tired", "exit_status": 1}', "[]"])
def test_what_is_no_status_file_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / STATUS_FILE).write_text(text)
    assert read_ending(tmp_path) is None


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (ConfigError("a = 1 must be 2"), Outcome.BAD_INPUT, "a = 1 must be 2"),
        (MeetingError("port in use"), Outcome.NOT_MET, "port in use"),
        (RuntimeError("lost\nand more"), Outcome.FAILED, "RuntimeError: lost"),
    ],
)
def test_what_is_raised_is_recorded_and_raised_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: Outcome, reason: str
) -> None:
    monkeypatch.setenv("ULTRAMEM_ATTEMPT", "12.1")
    with pytest.raises(type(error)), failures_recorded(tmp_path, rank=3):
        raise error
    ending = read_ending(tmp_path)
    assert ending is not None
    assert (ending.outcome, ending.reason, ending.rank, ending.attempt) == (outcome, reason, 3, "12.1")


@pytest.mark.parametrize(
    ("before", "corrected"),
    [
        (Ending(outcome=Outcome.FAILED, reason="RuntimeError: gloo: Connection closed by peer", rank=0), True),
        (Ending(outcome=Outcome.FAILED, reason="IndexError: 7", rank=0), False),
        (Ending(outcome=Outcome.HUNG, reason="rank 2 stands still", rank=0), False),
    ],
)
def test_who_sees_the_killed_rank_corrects_who_lost_a_connection(
    tmp_path: Path, before: Ending, corrected: bool
) -> None:
    record_ending(tmp_path, before)
    with pytest.raises(RankLostError), failures_recorded(tmp_path, rank=2):
        raise RankLostError("killed by a signal: rank 3 on n2 (pid 5)")
    ending = read_ending(tmp_path)
    assert ending is not None
    assert (ending.reason.startswith("killed by a signal: rank 3"), ending.rank) == (corrected, 2 if corrected else 0)


def test_every_outcome_has_a_rule_and_a_status_of_its_own() -> None:
    assert set(RULES) == set(Outcome)
    assert len({rule.exit_status for rule in RULES.values()}) == len(RULES)


def test_the_guide_has_the_rules() -> None:
    guide = (Path(__file__).parents[2] / "launch" / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in guide.splitlines() if line.startswith("| ")]
    shown = [
        (status, outcome, meaning, job.split(" ")[0]) for status, outcome, meaning, job, _ in filter(_has_five, rows)
    ]
    told = [
        (str(rule.exit_status), f"`{outcome}`", rule.meaning, "starts" if rule.restarts else "ends")
        for outcome, rule in RULES.items()
    ]
    assert sorted(shown[1:]) == sorted(told)


def _has_five(row: list[str]) -> bool:
    return len(row) == 5 and not row[0].startswith("---")


@pytest.mark.parametrize(
    ("verb", "never"),
    [("pretrain", {Outcome.BAD_NODE, Outcome.NODE_LOST}), ("submit", set())],
    ids=["pretrain", "submit"],
)
def test_help_names_every_status(verb: str, never: set[Outcome]) -> None:
    text = " ".join(CliRunner().invoke(app, [verb, "--help"]).output.split())
    for outcome, rule in RULES.items():
        assert (f"{rule.exit_status} {outcome}" in text) is (outcome not in never), outcome
    if verb == "submit":
        again = sorted(rule.exit_status for rule in RULES.values() if rule.restarts)
        assert f"starts again after {', '.join(map(str, again[:-1]))} and {again[-1]} as long" in text

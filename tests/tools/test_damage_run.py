"""tools/damage_run: what it does to files, what it thinks of what verbs do, and some cases of a real run."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))  # as it is for a script started there

from damaging.calls import Ended, call  # noqa: E402
from damaging.cases import Cases, choose  # noqa: E402
from damaging.damages import Damage, counterpart, damaged  # noqa: E402
from damaging.stage import Stage  # noqa: E402
from damaging.table import as_text  # noqa: E402
from damaging.verbs import Verb  # noqa: E402
from damaging.verdict import Row, Verdict, judge  # noqa: E402

SHARD = "run/checkpoints/step_00000004/__0_0.distcp"
TRACEBACK = 'Traceback (most recent call last):\n  File "x"\nKeyError: 1'


@pytest.mark.parametrize(
    ("damage", "after"),
    [
        (Damage.TRUNCATED, b"ab"),
        (Damage.FLIPPED, b"abbd"),
        (Damage.ZEROED, b"\0\0\0\0"),
        (Damage.DELETED, None),
        (Damage.FOREIGN, b"efgh"),
    ],
)
def test_damages(damage: Damage, after: bytes | None) -> None:
    assert damaged(b"abcd", damage, b"efgh") == after


@pytest.mark.parametrize(
    ("content", "damage", "foreign"),
    [
        (b"", Damage.TRUNCATED, None),
        (b"", Damage.FLIPPED, None),
        (b"\0", Damage.ZEROED, None),
        (b"ab", Damage.FOREIGN, None),
        (b"ab", Damage.FOREIGN, b"ab"),
    ],
)
def test_what_would_change_nothing_is_no_case(content: bytes, damage: Damage, foreign: bytes | None) -> None:
    with pytest.raises(LookupError):
        damaged(content, damage, foreign)


def test_the_same_place_in_another_run(tmp_path: Path) -> None:
    for name in ("run/a.json", "data/cache/77/x.npy", "run/tensorboard/events.out.tfevents.2.host"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert counterpart("run/a.json", tmp_path) == tmp_path / "run/a.json"
    assert counterpart("data/cache/55/x.npy", tmp_path) == tmp_path / "data/cache/77/x.npy"
    events = counterpart("run/tensorboard/events.out.tfevents.1.host", tmp_path)
    assert events == tmp_path / "run/tensorboard/events.out.tfevents.2.host"
    assert counterpart("run/b.json", tmp_path) is None


@pytest.mark.parametrize(
    ("ended", "result", "verdict"),
    [
        (Ended(2, "", "CheckpointError: it is damaged", 1.0), "", Verdict.REFUSED),
        (Ended(2, "", TRACEBACK, 1.0), "", Verdict.TRACEBACK),
        (Ended(0, TRACEBACK, "", 1.0), "as ever", Verdict.TRACEBACK),
        (Ended(1, "", "failed", 1.0), "", Verdict.FAILED),
        (Ended(-11, "", "", 1.0), "", Verdict.FAILED),
        (Ended(-9, "", "", 60.0, hung=True), "", Verdict.HUNG),
        (Ended(0, "", "", 1.0), "as ever", Verdict.SAME),
        (Ended(0, "", "", 1.0), "another", Verdict.SILENT),
        (Ended(0, "", "checkpoint step_00000004 is damaged", 1.0), "another", Verdict.NAMED),
        (Ended(0, "resumed from step_00000004", "", 1.0), "another", Verdict.SILENT),
    ],
)
def test_verdicts(ended: Ended, result: str, verdict: Verdict) -> None:
    assert judge(Verb("resume", (), ("run",)), SHARD, ended, result, "as ever") is verdict


def test_data_that_were_not_compared() -> None:
    resume = Verb("resume", (), ("run", "data"))
    told = Ended(0, "tokens were not compared with their hashes, which `ultramem data verify data` does", "", 1.0)
    assert judge(resume, "data/alpha/train.bin", told, "another", "as ever") is Verdict.TOLD
    assert judge(resume, SHARD, told, "another", "as ever") is Verdict.SILENT


def test_a_verify_that_finds_nothing_is_at_fault() -> None:
    verify = Verb("checkpoint verify", (), ("run",), answers_for=lambda file: file == SHARD)
    assert judge(verify, SHARD, Ended(0, "", "", 1.0), "as ever", "as ever") is Verdict.UNNOTICED
    assert judge(verify, "run/config.yaml", Ended(0, "", "", 1.0), "as ever", "as ever") is Verdict.SAME


def test_the_table() -> None:
    rows = [
        Row("run/a", Damage.TRUNCATED, "resume", Verdict.REFUSED, 2, 1.0, ""),
        Row("run/a", Damage.ZEROED, "resume", Verdict.SILENT, 0, 1.0, "step 8"),
        Row("run/a", Damage.DELETED, "info", Verdict.SAME, 0, 1.0, ""),
    ]
    lines = as_text(rows).splitlines()
    assert lines[3:5] == ["file   resume  info", "run/a  r S        ."]
    assert lines[-2:] == [
        "silent: resume with run/a zeroed: step 8",
        "3 cases: 1 refused, 0 named, 0 told, 1 same, 1 silent, 0 unnoticed, 0 traceback, 0 failed, 0 hung; 1 faults",
    ]


def test_a_call(tmp_path: Path) -> None:
    refused = call(["info", "nothing.yaml"], tmp_path / "scratch", 60, folder=tmp_path)
    assert refused.status == 2
    assert refused.err.startswith("ConfigError: nothing.yaml does not exist")
    assert call(["info", "nothing.yaml"], tmp_path / "scratch", 0, folder=tmp_path).hung


@pytest.fixture(scope="module")
def stage(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A run of four steps, and its data."""
    stage = Stage(tmp_path_factory.mktemp("stage"))
    stage.prepare(foreign=False)
    return stage


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks, on the CPU backend")
def test_some_cases(stage: Stage) -> None:
    """A part of the whole, which `tools/damage_run` does in a quarter of an hour."""
    files = ["step_00000004/__0_0.", "alpha/train.bin"]
    verbs = ["resume", "checkpoint verify", "data info"]
    chosen = choose(stage, files, verbs, ["truncated", "deleted"])
    cases = Cases(stage, 60)
    rows = {(Path(row.file).name, row.damage, row.verb): row for row in map(cases.run, chosen)}
    assert [row for row in rows.values() if row.verdict.is_fault] == []
    for damage in (Damage.TRUNCATED, Damage.DELETED):
        assert rows["__0_0.distcp", damage, "checkpoint verify"].verdict is Verdict.REFUSED
        assert rows["__0_0.distcp", damage, "resume"].verdict is Verdict.SAME, "from the checkpoint before"
        assert rows["train.bin", damage, "resume"].verdict is Verdict.REFUSED
    again = Cases(stage, 60)
    assert list(again.open_ones(chosen, again=True)) == [], "results are kept"
    assert again.done(chosen) == list(rows.values())

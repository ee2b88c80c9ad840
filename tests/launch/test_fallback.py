"""Starts that keep failing from one checkpoint: it is set aside, the one before is taken, and there is an end to it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ultramem_launch.ending import Ending, Outcome, read_ending, record_ending
from ultramem_launch.slurm.attempts import Attempt, count_fruitless, decide, find_suspect
from ultramem_launch.slurm.batch import START_AGAIN, begin, end
from ultramem_launch.slurm.client import JobState
from ultramem_launch.slurm.folder import JobFolder
from ultramem_launch.slurm.progress import Progress, describe
from ultramem_megatron.checkpoint.set_aside import MARK
from ultramem_megatron.testing.tiny import write_tiny_config

FAILED, HUNG, NODE_LOST, PREEMPTED = Outcome.FAILED, Outcome.HUNG, Outcome.NODE_LOST, Outcome.PREEMPTED
Start = tuple[int, int, Outcome]
"""Steps of the checkpoints that a start found and left, and its end."""


def series(starts: Sequence[Start]) -> list[Attempt]:
    return [
        Attempt(name=f"7.{n}", nodes=2, first_step=first, last_step=last, outcome=outcome, started=0.0)
        for n, (first, last, outcome) in enumerate(starts)
    ]


@pytest.mark.parametrize(
    ("starts", "suspect"),
    [
        pytest.param([(0, 6, FAILED), (6, 6, FAILED)], None, id="once-is-not-enough"),
        pytest.param([(0, 6, FAILED), (6, 6, FAILED), (6, 6, HUNG)], 6, id="twice"),
        pytest.param([(6, 6, FAILED), (6, 6, NODE_LOST), (6, 6, FAILED)], 6, id="a-lost-node-says-nothing"),
        pytest.param([(6, 6, FAILED), (6, 6, FAILED), (6, 6, NODE_LOST)], None, id="not-after-a-lost-node"),
        pytest.param([(6, 6, FAILED), (6, 6, Outcome.NOT_MET)], None, id="nor-do-ranks-that-did-not-meet"),
        pytest.param([(6, 6, PREEMPTED), (6, 6, PREEMPTED)], None, id="limits-too-short"),
        pytest.param([(4, 6, FAILED), (4, 6, FAILED)], None, id="it-left-a-newer-one"),
        pytest.param([(6, 6, FAILED), (4, 4, FAILED), (6, 6, FAILED)], None, id="not-in-a-row"),
    ],
)
def test_which_checkpoint_is_suspected(starts: list[Start], suspect: int | None) -> None:
    assert find_suspect(series(starts)) == suspect


def test_a_mark_that_was_taken_away_gives_new_chances() -> None:
    first, second, *_ = series([(6, 6, FAILED), (6, 6, FAILED)])
    marked = [first, Attempt.from_dict({**second.to_dict(), "set_aside": 6})]
    again = series([(6, 6, FAILED), (6, 6, FAILED)])
    assert find_suspect([*marked, again[0]]) is None
    assert find_suspect([*marked, *again]) == 6


@pytest.mark.parametrize(
    ("checkpoints", "suspect"),
    [([6, 4, 2], 6), ([6], None), ([], None), ([4, 2], None)],
    ids=["an-older-one", "the-only-one", "none", "gone-already"],
)
def test_it_is_set_aside_where_there_is_an_older_one(checkpoints: list[int], suspect: int | None) -> None:
    starts = series([(0, 6, FAILED), (6, 6, FAILED), (6, 6, FAILED)])
    verdict = decide(Ending(outcome=FAILED, reason="boom"), "none", starts, 3, checkpoints)
    assert (verdict.restart, verdict.set_aside) == (True, suspect)
    words = "failed: boom; starts again (2 of 3 starts without progress)"
    if suspect:
        words += ", from step 4: the checkpoint of step 6, from which starts keep failing, is set aside"
    assert verdict.words == words


def test_at_the_cap_nothing_is_set_aside() -> None:
    starts = series([(6, 6, FAILED), (6, 6, FAILED)])
    verdict = decide(Ending(outcome=FAILED), "none", starts, 1, [6, 4])
    assert (verdict.restart, verdict.set_aside) == (False, None)


def test_steps_done_again_are_no_progress() -> None:
    """Or a run would go back, reach the same fault, and go back again, for ever."""
    assert count_fruitless(series([(0, 6, FAILED), (6, 6, FAILED), (6, 6, FAILED), (4, 5, FAILED), (5, 6, HUNG)])) == 4
    assert count_fruitless(series([(0, 6, FAILED), (6, 6, FAILED), (6, 6, FAILED), (4, 7, FAILED)])) == 0


class Job:
    """The script's helper, called as the script calls it, and a run in between that does what it is told."""

    def __init__(self, folder: JobFolder, monkeypatch: pytest.MonkeyPatch, requeue: bool) -> None:
        self.folder, self.monkeypatch, self.requeue, self.starts = folder, monkeypatch, requeue, 0

    def start(self, outcome: Outcome, write: Callable[[], object] = lambda: None) -> int:
        """What ``end`` says."""
        name = f"7.{self.starts}" if self.requeue else f"{7 + self.starts}.0"
        self.monkeypatch.setenv("ULTRAMEM_ATTEMPT", name)
        self.starts += 1
        assert begin(self.folder, allocated=2, tasks_per_node=1, chain=1 if self.requeue else 9) == 0
        write()
        record_ending(self.folder.run_dir, Ending(outcome=outcome, reason="boom", attempt=name))
        return end(self.folder, 1, "none", [], 3, self.requeue)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """Of a job whose run folder is where ``write_checkpoint`` writes."""
    made = JobFolder(tmp_path / "run")
    made.job.mkdir(parents=True)
    write_tiny_config(tmp_path).rename(made.config)
    return made


def write_checkpoint(folder: JobFolder, step: int) -> None:
    (folder.checkpoint(step)).mkdir(parents=True, exist_ok=True)
    (folder.checkpoint(step) / MARK).unlink(missing_ok=True)


def test_a_job_goes_back_one_by_one_to_the_cap(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(folder, monkeypatch, requeue=True)
    for step in (2, 4):
        write_checkpoint(folder, step)
    assert job.start(FAILED, lambda: write_checkpoint(folder, 6)) == START_AGAIN
    assert [job.start(outcome) for outcome in (FAILED, HUNG)] == [START_AGAIN, START_AGAIN]
    printed = capsys.readouterr().out
    assert "hung: boom; starts again (2 of 3 starts without progress), from step 4: the checkpoint of step 6" in printed
    mark = folder.checkpoint(6) / MARK
    why = "2 starts from it failed in a row, 7.2 last: boom"
    assert f"checkpoint {mark.parent} is set aside: {why}; to use it all the same, remove {mark}\n" in printed
    # from step 4 it gets back to 6, where the fault is
    assert job.start(FAILED, lambda: write_checkpoint(folder, 6)) == START_AGAIN
    assert job.start(FAILED) == 1, "the cap"
    found = json.loads(folder.attempts.read_text())
    assert [(one["first_step"], one["last_step"], one["set_aside"]) for one in found] == [
        (4, 6, None),
        (6, 6, None),
        (6, 6, 6),
        (4, 6, None),
        (6, 6, None),
    ]
    assert read_ending(folder.run_dir) is not None


def test_so_does_a_chain(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(folder, monkeypatch, requeue=False)
    for step in (4, 6):
        write_checkpoint(folder, step)
    assert [job.start(FAILED) for _ in range(6)] == [1] * 6
    assert folder.usable_steps() == [4]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "failed: boom; the next job of the chain goes on"
    assert printed[1].startswith(
        "failed: boom; the next job of the chain goes on, from step 4: the checkpoint of step 6"
    )
    assert [one["set_aside"] for one in folder.read_attempts()] == [None, 6, None, None, None, None]


def test_a_checkpoint_that_cannot_be_marked_ends_nothing(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (4, 6):
        write_checkpoint(folder, step)
    (folder.checkpoint(6) / MARK).mkdir()  # root may write into any folder
    job = Job(folder, monkeypatch, requeue=True)
    assert [job.start(FAILED) for _ in range(2)] == [START_AGAIN, START_AGAIN]
    assert "cannot be set aside, so the next start uses it again: " in capsys.readouterr().out
    assert [one["set_aside"] for one in folder.read_attempts()] == [None, None]


def test_status_tells_it(folder: JobFolder) -> None:
    [one] = series([(6, 6, HUNG)])
    shown = {**one.to_dict(), "reason": "rank 3 stands still", "set_aside": 6}
    progress = Progress(
        run_dir=folder.run_dir,
        job=JobState("7", "PENDING"),
        steps=8,
        record={},
        checkpoint_step=4,
        ending=None,
        attempts=[shown],
    )
    last = describe(progress).splitlines()[-1]
    assert last.endswith("from step 6 to 6, hung (rank 3 stands still); set the checkpoint of step 6 aside")

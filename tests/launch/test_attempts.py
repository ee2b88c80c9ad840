"""Why a job ended, and whether it starts again."""

import threading
from pathlib import Path

import pytest

from ultramem_launch.ending import Ending, Outcome, read_ending, record_ending
from ultramem_launch.slurm.attempts import Attempt, count_fruitless, decide, judge
from ultramem_launch.slurm.batch import begin, lost_by_state, wait_for_ranks
from ultramem_launch.slurm.folder import JobFolder
from ultramem_megatron.testing.tiny import write_tiny_config


def ended(outcome: Outcome, reason: str = "") -> Ending:
    return Ending(outcome=outcome, reason=reason, rank=0, attempt="7.0", time=1.0)


def attempt(first_step: int, last_step: int, restart: int = 0) -> Attempt:
    return Attempt(name=f"7.{restart}", nodes=2, first_step=first_step, last_step=last_step, started=0.0)


@pytest.mark.parametrize(
    ("said", "status", "asked", "lost", "outcome", "words"),
    [
        pytest.param(Outcome.FINISHED, 143, "none", [], Outcome.FINISHED, "", id="srun-lies-and-the-run-knows"),
        pytest.param(Outcome.PREEMPTED, 0, "USR1", [], Outcome.PREEMPTED, "", id="saved-before-the-limit"),
        pytest.param(Outcome.FAILED, 1, "none", ["n2"], Outcome.NODE_LOST, "n2 no longer answers", id="lost-node"),
        pytest.param(Outcome.NOT_MET, 1, "none", ["n2"], Outcome.NODE_LOST, "n2 no longer answers", id="not-met-it"),
        pytest.param(Outcome.FINISHED, 0, "none", ["n2"], Outcome.FINISHED, "", id="lost-after-the-end"),
        pytest.param(None, 137, "none", ["a", "b"], Outcome.NODE_LOST, "a and b no longer answer", id="two-lost"),
        pytest.param(None, 138, "USR1", [], Outcome.PREEMPTED, "SIGUSR1 ended it before", id="too-early-to-save"),
        pytest.param(None, 143, "TERM", [], Outcome.PREEMPTED, "SIGTERM ended it before", id="cancelled-early"),
        pytest.param(None, 2, "none", [], Outcome.BAD_INPUT, "log", id="refused"),
        pytest.param(None, 137, "none", [], Outcome.FAILED, "killed by signal 9", id="out-of-memory"),
        pytest.param(None, 0, "none", [], Outcome.FAILED, "without a word", id="silent"),
        pytest.param(Outcome.DIVERGED, 81, "none", [], Outcome.DIVERGED, "", id="diverged"),
    ],
)
def test_why_it_ended(
    said: Outcome | None, status: int, asked: str, lost: list[str], outcome: Outcome, words: str
) -> None:
    ending = judge(
        ending=ended(said) if said else None, step_status=status, asked=asked, lost_nodes=lost, attempt="7.0"
    )
    assert ending.outcome is outcome
    assert words in ending.reason


@pytest.mark.parametrize(
    ("said", "asked", "lost", "outcome", "words"),
    [
        pytest.param(Outcome.FAILED, "none", [], Outcome.FAILED, "rank 3 on n2", id="others-lost-a-connection"),
        pytest.param(None, "none", [], Outcome.FAILED, "rank 3 on n2", id="nobody-said-anything"),
        pytest.param(Outcome.NOT_MET, "none", [], Outcome.FAILED, "rank 3 on n2", id="others-waited-for-it"),
        pytest.param(Outcome.FAILED, "none", ["n2"], Outcome.NODE_LOST, "no longer answers", id="with-its-node"),
        pytest.param(Outcome.HUNG, "none", [], Outcome.HUNG, "as it said", id="hung-before"),
        pytest.param(None, "TERM", [], Outcome.PREEMPTED, "SIGTERM ended it", id="killed-by-slurm"),
    ],
)
def test_a_killed_rank_is_named(
    said: Outcome | None, asked: str, lost: list[str], outcome: Outcome, words: str
) -> None:
    ending = judge(
        ending=ended(said, "as it said") if said else None,
        step_status=137,
        asked=asked,
        lost_nodes=lost,
        attempt="7.0",
        killed="rank 3 on n2 was killed by SIGKILL",
    )
    assert ending.outcome is outcome
    assert words in ending.reason


@pytest.mark.parametrize(
    ("said", "outcome", "words"),
    [
        pytest.param(None, Outcome.OUT_OF_DISK, "no room is left in the run folder", id="nobody-could-write"),
        pytest.param(Outcome.FAILED, Outcome.OUT_OF_DISK, "(rank 0 said: words)", id="a-rank-could"),
        pytest.param(Outcome.FINISHED, Outcome.FINISHED, "words", id="finished-all-the-same"),
    ],
)
def test_a_full_disk_that_keeps_ranks_from_saying_so(said: Outcome | None, outcome: Outcome, words: str) -> None:
    ending = judge(
        ending=ended(said, "words") if said else None,
        step_status=143,
        asked="none",
        lost_nodes=[],
        attempt="7.0",
        killed="rank 3 on n2 was killed by SIGKILL",
        disk_is_full=True,
    )
    assert ending.outcome is outcome
    assert words in ending.reason
    assert not decide(ending, "none", [attempt(0, 9)], max_restarts=9).restart


@pytest.mark.parametrize(
    "outcome", [Outcome.PREEMPTED, Outcome.FAILED, Outcome.NODE_LOST, Outcome.HUNG, Outcome.NOT_MET]
)
def test_what_a_restart_can_help(outcome: Outcome) -> None:
    assert decide(ended(outcome), "none", [attempt(0, 0)], max_restarts=1).restart


@pytest.mark.parametrize("outcome", [Outcome.FINISHED, Outcome.BAD_INPUT, Outcome.DIVERGED, Outcome.OUT_OF_DISK])
def test_what_it_cannot(outcome: Outcome) -> None:
    assert not decide(ended(outcome, "why"), "none", [attempt(0, 9)], max_restarts=9).restart


def test_sigterm_leaves_it_to_slurm() -> None:
    verdict = decide(ended(Outcome.PREEMPTED), "TERM", [attempt(0, 9)], max_restarts=9)
    assert not verdict.restart
    assert "SIGTERM came from Slurm or a user" in verdict.words
    assert decide(ended(Outcome.PREEMPTED), "USR1", [attempt(0, 9)], max_restarts=9).restart


@pytest.mark.parametrize(
    ("steps", "fruitless"),
    [
        ([(0, 0)], 1),
        ([(0, 0), (0, 0), (0, 0)], 3),
        ([(0, 10), (10, 20)], 0),
        ([(0, 0), (0, 10), (10, 10)], 1),
        ([(0, 0), (0, 10), (10, 10), (10, 10)], 2),
    ],
)
def test_starts_without_progress_are_counted_from_the_last_progress(
    steps: list[tuple[int, int]], fruitless: int
) -> None:
    attempts = [attempt(*one, restart=index) for index, one in enumerate(steps)]
    assert count_fruitless(attempts) == fruitless
    assert decide(ended(Outcome.FAILED), "none", attempts, max_restarts=fruitless).restart
    if fruitless:
        verdict = decide(ended(Outcome.FAILED, "boom"), "none", attempts, max_restarts=fruitless - 1)
        assert not verdict.restart
        assert verdict.words == f"failed: boom; gives up after {fruitless} starts in a row without a newer checkpoint"


def test_an_attempt_survives_its_file() -> None:
    one = Attempt(name="7.2", nodes=2, first_step=3, started=1.0, last_step=5, outcome=Outcome.HUNG, ended=2.0)
    assert Attempt.from_dict(one.to_dict()) == one
    assert one.job == "7"


def test_nodes_that_slurm_has_given_up() -> None:
    states = "n1 allocated\nn2 down*\nn2 down*\nn3 completing*\nn4 idle\nn5 failing\nn6 drained\n"
    assert lost_by_state(states) == ["n2", "n3", "n5"]


def test_ranks_that_save_without_srun_are_waited_for(tmp_path: Path) -> None:
    saved = ended(Outcome.PREEMPTED)
    rank = threading.Timer(0.3, record_ending, (tmp_path, saved))
    rank.start()
    wait_for_ranks(tmp_path, seconds=30.0)
    assert read_ending(tmp_path) == saved
    rank.join()


@pytest.mark.parametrize(
    ("second", "outcome"),
    [pytest.param("7.1", Outcome.NODE_LOST, id="by-slurm"), pytest.param("8.0", Outcome.FAILED, id="submitted-anew")],
)
def test_a_start_that_nobody_judged_is_closed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str, outcome: Outcome
) -> None:
    folder = JobFolder(tmp_path / "run")
    folder.job.mkdir(parents=True)
    write_tiny_config(tmp_path).rename(folder.config)
    for name in ("7.0", second):
        monkeypatch.setenv("ULTRAMEM_ATTEMPT", name)
        assert begin(folder, allocated=2, tasks_per_node=1, chain=1) == 0
    first, last = (Attempt.from_dict(content) for content in folder.read_attempts())
    assert (first.outcome, last.outcome) == (outcome, None)
    assert (last.name, last.nodes) == (second, 2)

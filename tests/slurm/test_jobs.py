"""Jobs on a real Slurm: they train, save before the limit, outlive a node, give up when they should.

What happens to each is in `scenarios.py`; here is what must have come of it.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_megatron.testing.slurm_jobs import attempts_of, logs_of, status_of

from .conftest import Ended, Records, numbers_of
from .scenarios import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Undisturbed = Callable[[int], Records]

LOOPBACK = "0100007F"
"""127.0.0.1, as /proc/net/tcp writes it on little-endian machines."""


def test_two_nodes_give_the_same_run_as_one_machine(ended: Ended, undisturbed: Undisturbed, jobs: Path) -> None:
    assert ended.facts["ended"]["JobState"] == "COMPLETED", logs_of(ended.run_dir)
    assert status_of(ended.run_dir)["outcome"] == "finished"
    assert numbers_of(ended.run_dir) == undisturbed(4)
    [attempt] = attempts_of(ended.run_dir)
    assert (attempt["nodes"], attempt["last_step"], attempt["outcome"]) == (2, STEPS, "finished")
    first, second = ended.facts["nodes"]
    assert f"0: all-reduce, GB/s: {first} " in ended.log(0)
    assert {f"0: {first}", f"1: {second}"} <= {line.rpartition(": python")[0] for line in ended.log(0).splitlines()}
    assert list(jobs.rglob("injected")) == []
    assert ended.facts["listening"] == [LOOPBACK], "ranks meet where nobody else can listen in"
    shown = ended.facts["status"]
    assert (shown["state"], shown["step"], shown["checkpoint_step"]) == ("COMPLETED", STEPS, STEPS)
    assert shown["ending"]["outcome"] == "finished"
    assert f"0: step {STEPS}/{STEPS} | loss" in ended.facts["logs"]


def test_a_run_longer_than_the_time_limit_goes_on_until_it_is_done(ended: Ended, undisturbed: Undisturbed) -> None:
    assert ended.facts["ended"]["JobState"] == "COMPLETED", logs_of(ended.run_dir)
    outcomes = [attempt["outcome"] for attempt in attempts_of(ended.run_dir)]
    assert outcomes[0] == "preempted" and outcomes[-1] == "finished"
    assert len(outcomes) == int(ended.facts["ended"]["Restarts"]) + 1
    assert numbers_of(ended.run_dir) == undisturbed(2)


def test_a_lost_node_is_done_without(ended: Ended, undisturbed: Undisturbed) -> None:
    assert ended.facts["ended"]["JobState"] == "COMPLETED", logs_of(ended.run_dir)
    before, after = attempts_of(ended.run_dir)
    assert (before["nodes"], before["outcome"]) == (2, "node_lost")
    # on a busy machine Slurm may notice before the script does
    assert re.search(f"{ended.facts['lost']} no longer answers|Slurm started the job again", before["reason"])
    assert (after["nodes"], after["first_step"], after["outcome"]) == (1, before["last_step"], "finished")
    records, expected = numbers_of(ended.run_dir), undisturbed(2)
    assert [record["step"] for record in records] == [record["step"] for record in expected]
    losses = [record["train/loss"] for record in expected]
    assert [record["train/loss"] for record in records] == pytest.approx(losses, rel=1e-5)


def test_a_killed_rank_a_damaged_checkpoint_and_a_stopped_rank_lose_nothing(
    ended: Ended, undisturbed: Undisturbed
) -> None:
    assert ended.facts["ended"]["JobState"] == "COMPLETED", logs_of(ended.run_dir)
    killed, hung, finished = attempts_of(ended.run_dir)
    assert (killed["outcome"], hung["outcome"], finished["outcome"]) == ("failed", "hung", "finished")
    held = rf"is in use by process \d+ on n\d \(job {ended.facts['job']}\)"
    assert re.search(held, ended.facts["held"]), ended.facts["held"]
    assert re.fullmatch(r"rank 3 on n\d was killed by SIGKILL \(often a lack of memory\)", killed["reason"])
    assert f"{ended.facts['damaged']} is damaged" in ended.log(1)
    assert re.search(r"rank 2 on n\d \(pid \d+\) stands after step \d+: its process is stopped", hung["reason"])
    assert numbers_of(ended.run_dir) == undisturbed(4)
    assert not (ended.run_dir / "lock.json").exists()


def test_a_run_that_always_crashes_is_given_up(ended: Ended) -> None:
    job = ended.facts["ended"]
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "1:0", "1"), logs_of(ended.run_dir)
    assert [attempt["outcome"] for attempt in attempts_of(ended.run_dir)] == ["failed", "failed"]
    assert status_of(ended.run_dir)["reason"] == "RuntimeError: crash in step 3, as the test asks"
    assert "gives up after 2 starts in a row without a newer checkpoint" in ended.log()
    assert re.search(r"^0: .*RuntimeError: crash in step 3", ended.log(1), re.MULTILINE), ended.log(1)

"""Who was killed, from what srun says. The words are those of Slurm 22.05."""

from pathlib import Path

import pytest

from ultramem_launch.slurm.killed import find_killed, first_killed

KILLED = """\
0: step 17/40 | loss   5.5003
2: RuntimeError: Connection closed by peer [127.0.0.1]:17833
srun: error: n2: task 3: Killed
srun: launch/slurm: _step_signal: Terminating StepId=28101.0
0: slurmstepd-n1: error: *** STEP 28101.0 ON n1 CANCELLED AT 2026-11-24T00:58:27 ***
srun: error: n2: task 2: Terminated
srun: error: n1: task 1: Exited with exit code 1
"""


def test_the_first_is_named_with_its_node(tmp_path: Path) -> None:
    log = tmp_path / "7.0.log"
    assert find_killed(log) == ""
    log.write_text(KILLED)
    assert find_killed(log) == "rank 3 on n2 was killed by SIGKILL (often a lack of memory)"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("n2: task 3: Out Of Memory", "rank 3 on n2 was killed for lack of memory"),
        ("n[1-2]: tasks 0-1,3: Segmentation fault (core dumped)", "ranks 0-1,3 on n[1-2] were killed by SIGSEGV"),
        ("n1: task 0: Bus error", "rank 0 on n1 was killed by SIGBUS"),
        ("n1: task 1: Exited with exit code 1", ""),
        ("Unable to create step for job 7: Job/step already completing", ""),
    ],
)
def test_what_srun_says_of_a_task(line: str, words: str) -> None:
    assert first_killed([f"srun: error: {line}\n"]) == words


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("srun: error: n1: task 0: Exited with exit code 1", id="another-failed-first"),
        pytest.param("srun: launch/slurm: _step_signal: Terminating StepId=7.0", id="srun-ends-the-step"),
        pytest.param("srun: Force Terminated StepId=7.0", id="somebody-cancelled-it"),
        pytest.param("srun: Job step aborted: Waiting up to 32 seconds for job step to finish.", id="srun-gives-up"),
    ],
)
def test_whom_srun_kills_is_not_the_cause(before: str) -> None:
    assert first_killed([f"{before}\n", "srun: error: n2: task 3: Killed\n"]) == ""


def test_what_a_rank_prints_is_not_sruns_word() -> None:
    assert first_killed(["3: srun: error: n1: task 0: Killed\n"]) == ""

"""Slurm's commands, with their failures as one paragraph. Text formats, which are the same in all releases."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ultramem_megatron.errors import LaunchError

ANSWER_SECONDS = 60.0
UNREACHABLE = "UNREACHABLE"
"""Not Slurm's word: it could not be asked, so the job may still be there."""
NO_SUCH_JOB = "Invalid job id"


@dataclass(frozen=True, slots=True)
class JobState:
    """What Slurm knows of a job."""

    job: str
    state: str
    """RUNNING, PENDING, COMPLETED, ...; UNKNOWN when Slurm has forgotten it; or ``UNREACHABLE``, for ``reason``."""
    reason: str = ""
    nodes: str = ""
    time_left: str = ""
    restarts: int = 0


def submit(script: Path, dependency: str = "") -> str:
    """The id of the new job."""
    options = [f"--dependency={dependency}"] if dependency else []
    # with clusters in a federation, ";" and the cluster's name follow
    return _call(["sbatch", "--parsable", *options, str(script)]).stdout.strip().partition(";")[0]


def try_submission(script: str) -> str:
    """What Slurm would do with it; nothing is submitted."""
    return _call(["sbatch", "--test-only"], text=script).stderr.strip()


def find_state(job: str) -> JobState:
    """From the queue; of a job that has left it, from scontrol or sacct, whichever knows it."""
    line, silence = _in_queue(job)
    if silence:
        return JobState(job, UNREACHABLE, silence)
    controlled = _ask(["scontrol", "show", "job", "--oneliner", job])
    # values may hold spaces, but not those that are read here
    shown = dict(word.partition("=")[::2] for word in controlled.split() if "=" in word)
    restarts = int(shown.get("Restarts", "0"))
    if line:
        state, reason, nodes, left = line.splitlines()[0].split("|")
        return JobState(job, state, "" if reason == "None" else reason, nodes, left, restarts)
    if "JobState" in shown:
        return JobState(job, shown["JobState"], nodes=shown.get("NodeList", ""), restarts=restarts)
    rows = _ask(["sacct", "-X", "--noheader", "--parsable2", f"--jobs={job}", "--format=State,NodeList"]).splitlines()
    state, _, nodes = rows[-1].partition("|") if rows else ("UNKNOWN", "", "")
    return JobState(job, state.split()[0] if state else "UNKNOWN", nodes=nodes)


def cancel(job: str) -> None:
    """SIGTERM to the ranks, which save."""
    _call(["scancel", job])


def requeue(job: str) -> None:
    """End it and put it back into the queue.

    Raises:
        LaunchError: It must not be: it is of a chain, or the cluster has switched that off.
    """
    try:
        _call(["scontrol", "requeue", job])
    except LaunchError as error:
        if "disabled" not in str(error):
            raise
        raise LaunchError(
            f"job {job} cannot be put back into the queue: it was submitted with --chain, or this cluster does not let "
            "jobs be requeued; `ultramem cancel` ends it after a save, and `ultramem submit` goes on from there"
        ) from None


def _in_queue(job: str) -> tuple[str, str]:
    """Its line, "" when the queue has none; and why Slurm could not be asked, "" when it could."""
    if not shutil.which("squeue"):
        return "", "squeue is not on PATH"
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T|%r|%N|%L"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return "", f"squeue did not answer within {ANSWER_SECONDS:.0f} s"
    fault = " ".join(done.stderr.split())
    if done.returncode and fault and NO_SUCH_JOB not in fault:
        return "", fault
    return (done.stdout.strip() if done.returncode == 0 else ""), ""


def _call(command: Sequence[str], text: str | None = None) -> "subprocess.CompletedProcess[str]":
    """What it printed.

    Raises:
        LaunchError: The command is missing, fails, or does not answer.
    """
    if not shutil.which(command[0]):
        raise LaunchError(
            f"{command[0]} is not on PATH: this machine has no Slurm; submit from a login node, or try it here with "
            "slurm/dev-cluster up"
        )
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{' '.join(command)} did not answer within {ANSWER_SECONDS:.0f} s; try again") from None
    if done.returncode != 0:
        raise LaunchError(f"{' '.join(command)} failed: {' '.join((done.stderr or done.stdout).split())}")
    return done


def _ask(command: Sequence[str]) -> str:
    """What it prints of a job that has left the queue, "" when it does not know: accounting may be switched off."""
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""

"""Jobs on a real Slurm of two nodes: they train, save before the limit, outlive a node, give up when they should."""

import json
import math
import re
import signal
from pathlib import Path

import pytest

from ultramem_launch.run_holder import this_process
from ultramem_launch.run_lock import RunHeldError, take
from ultramem_launch.slurm_place import job_port
from ultramem_megatron.checkpoint.store import checkpoint_folders
from ultramem_megatron.testing.slurm_faults import flip_byte
from ultramem_megatron.testing.slurm_jobs import Slurm, attempts_of, logs_of, newest_step, status_of, wait_until

from .conftest import SETTINGS, STEPS, numbers_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


LOOPBACK = "0100007F"
"""127.0.0.1, as /proc/net/tcp writes it on little-endian machines."""


def listening_on(port: int) -> set[str]:
    """Addresses on which a process of this machine listens at a port."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    addresses = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {address for address, number in addresses if int(number, 16) == port}


def test_two_nodes_give_the_same_run_as_one_machine(
    slurm: Slurm, config: Path, undisturbed: list[dict[str, float]], tmp_path: Path
) -> None:
    run_dir = tmp_path / 'it\'s "a" run $(touch injected) `touch injected` %j ;&|<>'
    job = slurm.submit(config, SETTINGS, run_dir, "--nodes", "2")
    listening: set[str] = set()

    def has_ended() -> bool:
        for step in range(3):  # two of checks, then the run
            listening.update(listening_on(job_port(int(job), step=step)))
        return bool(status_of(run_dir))

    wait_until(has_ended, run_dir)
    assert slurm.wait_for(job, run_dir)["JobState"] == "COMPLETED", logs_of(run_dir)
    assert status_of(run_dir)["outcome"] == "finished"
    assert numbers_of(run_dir) == undisturbed
    [attempt] = attempts_of(run_dir)
    assert (attempt["nodes"], attempt["last_step"], attempt["outcome"]) == (2, STEPS, "finished")
    log = (run_dir / "logs" / f"{job}.0.log").read_text()
    assert "0: all-reduce, GB/s: n1 " in log
    assert {"0: n1", "1: n2"} <= {line.rpartition(": python")[0] for line in log.splitlines()}
    assert [file for folder in (config.parent, tmp_path) for file in folder.rglob("injected")] == []
    assert listening == {LOOPBACK}, "ranks meet where nobody else can listen in"
    shown = json.loads(slurm.ultramem("status", "--run-dir", str(run_dir), "--json", cwd=tmp_path).stdout)
    assert (shown["state"], shown["step"], shown["checkpoint_step"]) == ("COMPLETED", STEPS, STEPS)
    assert shown["ending"]["outcome"] == "finished"
    followed = slurm.ultramem("logs", "--run-dir", str(run_dir), "--follow", cwd=tmp_path)
    assert f"0: step {STEPS}/{STEPS} | loss" in followed.stdout


def submit_longer_than_its_limit(slurm: Slurm, config: Path, import_seconds: float, folder: Path) -> tuple[str, Path]:
    """A job whose first start gets to a checkpoint within the limit, but not to the end. Its id and run folder.

    Four ranks share the cores as they start. Where the machine is busier than it was when a start was timed, the limit
    is doubled, as a user would do it.
    """
    minutes = math.ceil((20 + 5 * import_seconds) / 60)  # Slurm counts in whole ones
    while True:
        run_dir = folder / f"run-{minutes}-minutes"
        options = ("--nodes", "2", "--time", str(minutes), "--stop-before", "10", "--preflight", "none")
        pace = {"FAULT_PACE_SECONDS": str(72 * minutes / STEPS)}
        job = slurm.submit(config, SETTINGS, run_dir, *options, "--max-restarts", "9", **pace)
        wait_until(lambda run_dir=run_dir: attempts_of(run_dir)[:1] and attempts_of(run_dir)[0]["outcome"], run_dir)
        if attempts_of(run_dir)[0]["last_step"]:
            return job, run_dir
        slurm.call("scancel", job)
        minutes *= 2


def test_a_run_longer_than_the_time_limit_goes_on_until_it_is_done(
    slurm: Slurm, config: Path, undisturbed: list[dict[str, float]], import_seconds: float, tmp_path: Path
) -> None:
    job, run_dir = submit_longer_than_its_limit(slurm, config, import_seconds, tmp_path)
    ended = slurm.wait_for(job, run_dir)
    assert ended["JobState"] == "COMPLETED", logs_of(run_dir)
    outcomes = [attempt["outcome"] for attempt in attempts_of(run_dir)]
    assert outcomes[0] == "preempted" and outcomes[-1] == "finished"
    assert len(outcomes) == int(ended["Restarts"]) + 1
    assert numbers_of(run_dir) == undisturbed


def test_a_lost_node_is_done_without(
    slurm: Slurm, config: Path, undisturbed: list[dict[str, float]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    options = ("--nodes", "1-2", "--preflight", "nodes")
    job = slurm.submit(config, SETTINGS, run_dir, *options, FAULT_PACE_SECONDS="0.3")
    try:
        wait_until(lambda: newest_step(run_dir) > 12, run_dir)
        assert slurm.dev_cluster("stop-node", "n2").returncode == 0
        ended = slurm.wait_for(job, run_dir)
    finally:
        slurm.dev_cluster("start-node", "n2")
    assert ended["JobState"] == "COMPLETED", logs_of(run_dir)
    before, after = attempts_of(run_dir)
    assert (before["nodes"], before["outcome"]) == (2, "node_lost")
    # on a busy machine Slurm may notice before the script does
    assert re.search("n2 no longer answers|Slurm started the job again", before["reason"])
    assert (after["nodes"], after["first_step"], after["outcome"]) == (1, before["last_step"], "finished")
    records = numbers_of(run_dir)
    assert [record["step"] for record in records] == [record["step"] for record in undisturbed]
    expected = [record["train/loss"] for record in undisturbed]
    assert [record["train/loss"] for record in records] == pytest.approx(expected, rel=1e-5)


def test_a_killed_rank_a_damaged_checkpoint_and_a_stopped_rank_lose_nothing(
    slurm: Slurm, config: Path, undisturbed: list[dict[str, float]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    limits = ("resilience.hang_seconds=8", "resilience.pause_seconds=100")
    options = ("--nodes", "2", "--preflight", "none")
    job = slurm.submit(config, (*SETTINGS, *limits), run_dir, *options, FAULT_PACE_SECONDS="0.1")
    wait_until(lambda: newest_step(run_dir) > 26, run_dir)
    with pytest.raises(RunHeldError, match=rf"is in use by process \d+ on n1 \(job {job}\)"):
        take(run_dir, this_process({}))
    slurm.rank_process(job, 3).send_signal(signal.SIGKILL)
    wait_until(lambda: attempts_of(run_dir)[0]["outcome"], run_dir)
    newest = checkpoint_folders(run_dir / "checkpoints")[0]
    flip_byte(max(newest.glob("*.distcp"), key=lambda file: file.stat().st_size))
    second_log = run_dir / "logs" / f"{job}.1.log"
    wait_until(lambda: second_log.is_file() and re.search(r"^0: step +11/", second_log.read_text(), re.M), run_dir)
    slurm.rank_process(job, 2).send_signal(signal.SIGSTOP)
    assert slurm.wait_for(job, run_dir)["JobState"] == "COMPLETED", logs_of(run_dir)
    killed, hung, finished = attempts_of(run_dir)
    assert (killed["outcome"], hung["outcome"], finished["outcome"]) == ("failed", "hung", "finished")
    assert killed["reason"] == "rank 3 on n2 was killed by SIGKILL (often a lack of memory)"
    assert f"{newest} is damaged" in second_log.read_text()
    assert re.search(r"rank 2 on n2 \(pid \d+\) stands after step \d+: its process is stopped", hung["reason"])
    assert numbers_of(run_dir) == undisturbed
    assert not (run_dir / "lock.json").exists()


def test_a_run_that_always_crashes_is_given_up(slurm: Slurm, config: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ("--nodes", "1", "--max-restarts", "1", "--preflight", "none")
    job = slurm.submit(config, SETTINGS, run_dir, *options, FAULT_CRASH_AT_STEP="3")
    ended = slurm.wait_for(job, run_dir)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "1"), logs_of(run_dir)
    assert [attempt["outcome"] for attempt in attempts_of(run_dir)] == ["failed", "failed"]
    assert status_of(run_dir)["reason"] == "RuntimeError: crash in step 3, as the test asks"
    assert (
        "gives up after 2 starts in a row without a newer checkpoint" in (run_dir / "logs" / f"{job}.log").read_text()
    )
    rank_log = (run_dir / "logs" / f"{job}.1.log").read_text()
    assert re.search(r"^[01]: .*RuntimeError: crash in step 3", rank_log, re.MULTILINE), rank_log

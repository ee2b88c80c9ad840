"""One run, one folder: who holds it, who is refused, and who takes over from a holder that is gone."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch.distributed as dist

from ultramem_launch import run_lock
from ultramem_launch.ending import Ending, Outcome, clear_ending, read_ending, record_ending
from ultramem_launch.place import find_place
from ultramem_launch.pretrain import run_rank
from ultramem_launch.run_folder import RunFolder, check_writable, held_by_launcher
from ultramem_launch.run_holder import Holder, for_local_ranks, launch_of, this_process
from ultramem_launch.run_lock import LOCK_FILE, RunHeldError, kept, last_holder, refuse_held, take
from ultramem_launch.slurm.batch import begin_locked
from ultramem_launch.slurm.client import UNREACHABLE, JobState
from ultramem_launch.slurm.folder import JobFolder
from ultramem_megatron.errors import FileError, LaunchError, OutOfDiskError
from ultramem_megatron.parallel.agree import on_first_rank
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import tiny_config, write_tiny_config

ELSEWHERE = "another-boot pid:[1]"
SILENT_SECONDS = 0.3


def holder(**changes: object) -> Holder:
    return replace(this_process({}), **changes)  # type: ignore[arg-type]


def dead_process() -> int:
    """The number of a process that has just ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def plant(run_dir: Path, one: Holder) -> Holder:
    """As if ``one`` had taken the lock."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / LOCK_FILE).write_text(json.dumps(asdict(one)))
    return one


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_second_start_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    first = take(tmp_path / "run", holder(host="n1", job="17"))
    before = (tmp_path / "run" / LOCK_FILE).read_bytes()
    with pytest.raises(
        RunHeldError, match=rf"run is in use by process {os.getpid()} on n1 \(job 17\) since 20.*scancel 17"
    ):
        take(tmp_path / "run", holder())
    assert (names(tmp_path / "run"), (tmp_path / "run" / LOCK_FILE).read_bytes()) == ([LOCK_FILE], before)
    first.release()
    take(tmp_path / "run", holder()).release()


def test_giving_it_back_leaves_no_folder_that_was_made_for_it(tmp_path: Path) -> None:
    take(tmp_path / "runs" / "new", holder()).release()
    assert names(tmp_path) == []
    lock = take(tmp_path / "runs" / "new", holder())
    (tmp_path / "runs" / "new" / "config.yaml").write_text("x")
    lock.release()
    assert names(tmp_path / "runs" / "new") == ["config.yaml"]


GONE = {
    "its-process": lambda: holder(pid=dead_process()),
    "its-number-is-anothers": lambda: holder(process_started="1"),
    "elsewhere-and-silent": lambda: holder(machine=ELSEWHERE),
}


@pytest.mark.parametrize("gone", GONE.values(), ids=GONE.keys())
def test_who_is_gone_loses_it(tmp_path: Path, gone: Callable[[], Holder], caplog: pytest.LogCaptureFixture) -> None:
    plant(tmp_path, gone())
    mine = holder()
    lock = take(tmp_path, mine, silent_seconds=SILENT_SECONDS)
    assert "took over from process" in caplog.text
    assert (last_holder(tmp_path), names(tmp_path)) == (mine, [LOCK_FILE])
    lock.release()
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"token": "../../x", "host": "a", "pid": 1}', "\x00" * 64])
def test_a_torn_lock_is_of_nobody(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "TORN_SECONDS", 0.01)
    (tmp_path / LOCK_FILE).write_text(content)
    mine = holder()
    take(tmp_path, mine)
    assert (last_holder(tmp_path), names(tmp_path)) == (mine, [LOCK_FILE])


def test_who_lives_elsewhere_is_seen_by_its_beats(tmp_path: Path) -> None:
    far = plant(tmp_path, holder(machine=ELSEWHERE))
    lock = run_lock.RunLock(tmp_path, far, is_ours=True)
    refused = pytest.raises(RunHeldError, match=r"end it with `kill")
    with kept(lock, pytest.fail, beat_seconds=0.05), refused:
        take(tmp_path, holder(), silent_seconds=5.0)


def test_who_ends_while_another_waits_for_a_sign_makes_room(tmp_path: Path) -> None:
    plant(tmp_path, holder(machine=ELSEWHERE))
    threading.Timer(0.1, (tmp_path / LOCK_FILE).unlink).start()
    mine = holder()
    take(tmp_path, mine, silent_seconds=5.0)
    assert last_holder(tmp_path) == mine


def test_who_was_cut_off_and_comes_back_finds_out(tmp_path: Path) -> None:
    far = plant(tmp_path, holder(machine=ELSEWHERE))
    mine = take(tmp_path, holder(), silent_seconds=SILENT_SECONDS)
    lost: list[str] = []
    with kept(run_lock.RunLock(tmp_path, far, is_ours=True), lost.append, beat_seconds=0.01):
        deadline = time.monotonic() + 10
        while not lost and time.monotonic() < deadline:
            time.sleep(0.01)
    run_lock.RunLock(tmp_path, far, is_ours=True).release()
    assert "was taken over by process" in lost[0]
    assert last_holder(tmp_path) == mine.holder


def test_a_lock_that_somebody_removed_is_put_back(tmp_path: Path) -> None:
    lock = take(tmp_path, holder())
    (tmp_path / LOCK_FILE).unlink()
    assert not lock.is_lost()
    assert last_holder(tmp_path) == lock.holder


@pytest.mark.parametrize("start", ["nothing", "a dead holder", "a dead holder and one that died taking over"])
def test_of_many_starts_at_once_one_succeeds(tmp_path: Path, start: str) -> None:
    run_dir = tmp_path / "run"
    if start != "nothing":
        first = plant(run_dir, holder(pid=dead_process()))
        if start != "a dead holder":
            claim = run_dir / f".{first.token}.claim"
            claim.write_text(json.dumps(asdict(holder(pid=dead_process()))))
    gate = threading.Barrier(16)
    outcomes: list[Holder | None] = []

    def try_it() -> None:
        mine = holder()
        gate.wait()
        try:
            take(run_dir, mine)
        except RunHeldError:
            outcomes.append(None)
        else:
            outcomes.append(mine)

    threads = [threading.Thread(target=try_it) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [one for one in outcomes if one is not None]
    assert len(outcomes) == 16
    assert (last_holder(run_dir), names(run_dir)) == (winner, [LOCK_FILE])


@pytest.mark.parametrize(
    ("state", "launch", "held"),
    [
        pytest.param("RUNNING", "job 7.0", True, id="runs"),
        pytest.param("SUSPENDED", "step 0:7:", True, id="suspended"),
        pytest.param("COMPLETED", "job 7.0", False, id="over"),
        pytest.param("NODE_FAIL", "job 7.0", False, id="lost-its-node"),
        pytest.param(UNREACHABLE, "job 7.0", False, id="nobody-knows-and-it-is-silent"),
        pytest.param("RUNNING", "step 0:7:", False, id="an-allocation-that-outlives-its-run"),
    ],
)
def test_slurm_knows_whether_a_job_elsewhere_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, launch: str, held: bool
) -> None:
    monkeypatch.setattr("ultramem_launch.slurm.client.find_state", lambda job: JobState(job, state))
    plant(tmp_path, holder(machine=ELSEWHERE, job="7", launch=launch))
    if held:
        with pytest.raises(RunHeldError):
            take(tmp_path, holder(), silent_seconds=SILENT_SECONDS)
    else:
        take(tmp_path, holder(), silent_seconds=SILENT_SECONDS)


def job(folder: JobFolder, attempt: str, script: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULTRAMEM_ATTEMPT", attempt)
    monkeypatch.setenv("SLURM_JOB_ID", attempt.partition(".")[0])
    assert begin_locked(folder, 1, 1, 1, script) == 0


def test_a_job_holds_it_from_its_script_on_and_a_requeue_takes_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = JobFolder(tmp_path / "run")
    folder.job.mkdir(parents=True)
    write_tiny_config(tmp_path).rename(folder.config)
    job(folder, "7.0", os.getpid(), monkeypatch)
    rank = take(folder.run_dir, this_process())  # of the same start
    rank.release()
    assert last_holder(folder.run_dir) is not None, "it is the script's"
    attempts = folder.attempts.read_bytes()
    record_ending(folder.run_dir, Ending(outcome=Outcome.HUNG))
    with pytest.raises(RunHeldError, match="job 7"):
        job(folder, "8.0", os.getpid(), monkeypatch)
    assert folder.attempts.read_bytes() == attempts
    assert read_ending(folder.run_dir) is not None
    job(folder, "7.1", os.getpid(), monkeypatch)
    found = last_holder(folder.run_dir)
    assert found is not None
    assert found.launch == "job 7.1"


def test_a_start_of_a_job_that_must_stop_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = JobFolder(tmp_path / "run")
    folder.job.mkdir(parents=True)
    folder.config.write_text("nonsense: 1")
    monkeypatch.setenv("ULTRAMEM_ATTEMPT", "7.0")
    with pytest.raises(ValueError, match="nonsense"):
        begin_locked(folder, 1, 1, 1, os.getpid())
    assert last_holder(folder.run_dir) is None


def test_submit_refuses_a_run_in_which_somebody_trains(tmp_path: Path) -> None:
    take(tmp_path, holder())
    with pytest.raises(RunHeldError, match="is in use"):
        refuse_held(tmp_path, holder())


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, ""),
        ({"ULTRAMEM_LAUNCH": "abc", "SLURM_JOB_ID": "7"}, "local abc"),
        ({"ULTRAMEM_ATTEMPT": "7.1", "SLURM_STEP_ID": "2"}, "job 7.1"),
        ({"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "torchrun none:a:1"),
        ({"SLURM_STEP_ID": "2", "SLURM_JOB_ID": "7"}, "step 2:7:"),
        ({"PMIX_NAMESPACE": "x", "SLURM_STEP_ID": "2", "SLURM_JOB_ID": "7"}, "mpi x"),
    ],
)
def test_what_ranks_of_one_start_have_in_common(environment: dict[str, str], launch: str) -> None:
    assert launch_of(environment) == launch


def test_ranks_join_the_lock_of_their_launcher(tmp_path: Path) -> None:
    mine = for_local_ranks(this_process({}))
    with held_by_launcher(tmp_path / "run", mine):
        rank = take(tmp_path / "run", this_process({"ULTRAMEM_LAUNCH": mine.token}))
        rank.release()
        assert last_holder(tmp_path / "run") == mine
    assert names(tmp_path) == []


def test_ranks_that_were_not_told_write_nothing_into_anothers_run(tmp_path: Path) -> None:
    take(tmp_path, holder(launch="torchrun a"))
    told = RunFolder(tmp_path, 1, holder(launch="torchrun b"))
    assert not told.may_write()
    assert RunFolder(tmp_path, 1, holder(launch="torchrun a")).may_write()
    refused = RunFolder(tmp_path, 0, holder(launch="torchrun b"))
    refused.take()
    assert not refused.may_write()
    with pytest.raises(RunHeldError):
        refused.tell()


def told_by_rank_0(run_dir: Path) -> str:
    folder = RunFolder(run_dir, dist.get_rank(), holder(launch="torchrun b"))
    if dist.get_rank() == 0:
        folder.take()
    with pytest.raises(RunHeldError) as refused:
        on_first_rank(folder.tell)
    return str(refused.value)


def test_all_ranks_are_told_that_another_start_holds_the_run(tmp_path: Path) -> None:
    take(tmp_path, holder(launch="torchrun a"))
    first, second = run_distributed(2, told_by_rank_0, tmp_path)
    assert first == second
    assert "is in use by process" in first


def test_a_start_forgets_how_the_run_ended_and_removes_what_was_left(tmp_path: Path) -> None:
    record_ending(tmp_path, Ending(outcome=Outcome.FAILED))
    (tmp_path / ".plan.json.0123456789abcdef.part").write_text("half")
    with held_by_launcher(tmp_path, holder()):
        assert names(tmp_path) == [LOCK_FILE]
    clear_ending(tmp_path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda run: (run / "checkpoints").write_text("x"), "checkpoints must be a folder, and is none"),
        (lambda run: (run / "tensorboard").symlink_to(run / "nothing"), "tensorboard must be a folder"),
        (lambda run: (run / "metrics.jsonl").mkdir(), "metrics.jsonl must be a file, and is none"),
        (lambda run: (run / "plan.json").mkdir(), "plan.json must be a file"),
    ],
)
def test_a_folder_that_a_run_could_not_write_into(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path)
    with pytest.raises(LaunchError, match=words):
        check_writable(tmp_path)


def test_a_full_disk_has_its_own_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything is imported or trained."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ultramem_megatron.files.open_part", refuse)
    monkeypatch.setattr("ultramem_launch.pretrain.find_place", lambda: find_place({}))
    with pytest.raises(OutOfDiskError, match=r"No space left on device; make room"):
        run_rank(tiny_config(), tmp_path / "run")


def test_a_place_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "run", Path("/proc/nothing/run")):
        with pytest.raises(FileError, match=r"cannot be written: .*; "):
            take(place, holder())

"""Ranks that stand still: who is named, and that a pause that may be long, or ends in time, is no hang."""

import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ultramem_megatron.config.resilience import ResilienceConfig
from ultramem_megatron.errors import ConfigError, RankLostError
from ultramem_megatron.training import heartbeat
from ultramem_megatron.training.heartbeat import Heartbeat, blame, read_heartbeats, silent_ranks
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.watchdog import TakesLong, Watchdog, Watched

WAIT_SECONDS = 60.0


def beat(rank: int, **changes: Any) -> Heartbeat:
    usual = Heartbeat(rank=rank, host="n1", pid=1, process_started=0.0, beats=5, step=7, doing="a step")
    return (
        replace(usual, stands_still=True, where="loop.py:3 (run)", waits=True, **changes)
        if not changes
        else replace(usual, **changes)
    )


def test_a_process_that_does_not_run_is_silent() -> None:
    before = {0: beat(0), 1: beat(1, beats=9), 2: beat(2, beats=3)}
    after = {0: beat(0), 1: beat(1, beats=9), 2: beat(2, beats=4)}
    assert silent_ranks(before, after, 4) == [1, 3], "0 awaits its verdict, 2 runs, 3 never said anything"
    assert (
        blame(after, [1], 4)
        == "rank 1 on n1 (pid 1) stands after step 7: its process does not run, or its machine is lost"
    )
    assert blame(after, [3], 4) == "rank 3 has not said anything since it was started"


def test_who_stands_elsewhere_is_named() -> None:
    ranks = {rank: beat(rank) for rank in range(4)}
    behind = ranks | {2: beat(2, step=6, where="indexed.py:9 (read)", waits=False)}
    assert blame(behind, [], 4) == "rank 2 on n1 stands after step 6 at indexed.py:9 (read)"
    elsewhere = ranks | {3: beat(3, where="hook.py:1 (after_step)", waits=False)}
    assert blame(elsewhere, [], 4) == "rank 3 on n1 stands after step 7 at hook.py:1 (after_step)"
    assert blame(ranks, [], 4) == "all 4 ranks stand after step 7 (a step) and none stands out"
    assert blame({}, list(range(9)), 9).endswith(" and 5 more")


def test_slurms_name_for_the_machine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    assert heartbeat.machine_name() == "n7"
    monkeypatch.delenv("SLURMD_NODENAME")
    assert heartbeat.machine_name() == heartbeat.socket.gethostname()


@pytest.mark.parametrize(
    ("changes", "text", "named"),
    [
        pytest.param({}, "gloo: Connection closed by peer", True, id="killed"),
        pytest.param({"has_left": True}, "gloo: Connection closed by peer", False, id="ended-by-itself"),
        pytest.param({"stands_still": True}, "gloo: Connection closed by peer", False, id="ended-as-hung"),
        pytest.param({"host": "another"}, "gloo: Connection closed by peer", False, id="cannot-be-seen-from-here"),
        pytest.param({}, "index 7 is out of range", False, id="another-error"),
    ],
)
def test_a_rank_that_is_gone_is_named_when_its_connection_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], text: str, named: bool
) -> None:
    monkeypatch.setattr("ultramem_megatron.training.watchdog.LOST_POLLS", 2)
    other = subprocess.Popen(["sleep", "1000"])
    started = psutil.Process(other.pid).create_time()
    here = heartbeat.machine_name()
    with (
        pytest.raises(RankLostError if named else RuntimeError, match="rank 1 on .* \\(pid" if named else text),
        Watchdog(tmp_path, ResilienceConfig(), rank=0, world_size=2, end=pytest.fail),
    ):
        theirs = beat(1, **{"host": here, "pid": other.pid, "process_started": started, **changes})
        theirs.write(tmp_path / heartbeat.WATCHDOG_FOLDER)
        other.kill()
        other.wait()
        raise RuntimeError(text)
    assert read_heartbeats(tmp_path / heartbeat.WATCHDOG_FOLDER, 1)[0].has_left


def test_heartbeats_of_an_earlier_start_are_forgotten(tmp_path: Path) -> None:
    beat(1).write(tmp_path)
    heartbeat.stack_file(tmp_path, 1).write_text("stacks")
    heartbeat.forget_earlier(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [heartbeat.stack_file(tmp_path, 1).name]


def test_a_process_of_the_same_number_is_not_taken_for_the_rank() -> None:
    me = psutil.Process()
    mine = beat(0, host=heartbeat.socket.gethostname(), pid=os.getpid(), process_started=me.create_time())
    assert heartbeat.process_of(mine) == me
    assert heartbeat.process_of(replace(mine, process_started=1.0)) is None
    assert "its process is gone" in blame({0: replace(mine, process_started=1.0)}, [0], 1)
    assert heartbeat.process_of(replace(mine, host="another")) is None


def test_files_that_are_torn_or_missing_are_left_out(tmp_path: Path) -> None:
    heartbeat.beat_file(tmp_path, 0).write_text('{"rank":')
    beat(1).write(tmp_path)
    assert read_heartbeats(tmp_path, 3) == {1: beat(1)}


def test_a_rank_that_stands_still_is_named_with_its_stack(tmp_path: Path) -> None:
    ended = threading.Event()
    reasons: list[str] = []

    def end(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    config = ResilienceConfig(hang_seconds=0.2)
    with Watchdog(tmp_path, config, rank=0, world_size=2, end=end) as watchdog:
        watchdog.progress(3, "a step")
        assert ended.wait(WAIT_SECONDS)  # this very line stands still
    assert "(a step): rank 1 has not said anything" in reasons[0]
    stack = heartbeat.stack_file(tmp_path / heartbeat.WATCHDOG_FOLDER, 0).read_text()
    assert "test_a_rank_that_stands_still_is_named_with_its_stack" in stack
    last = read_heartbeats(tmp_path / heartbeat.WATCHDOG_FOLDER, 1)[0]
    assert (last.step, last.stands_still) == (3, True)


def test_what_may_take_long_is_no_hang(tmp_path: Path) -> None:
    reasons: list[str] = []
    config = ResilienceConfig(hang_seconds=0.2, pause_seconds=1000)
    with Watchdog(tmp_path, config, rank=0, world_size=1, end=reasons.append) as watchdog:
        folder = tmp_path / heartbeat.WATCHDOG_FOLDER
        for step in (0, 1):  # the start, then a pause that is announced
            first = read_heartbeats(folder, 1).get(0)
            while (now := read_heartbeats(folder, 1).get(0)) is None or now.beats < (first.beats if first else 0) + 15:
                threading.Event().wait(0.05)
            assert now.step == step
            watchdog.progress(1, "saving a checkpoint", may_take_long=True)
    assert reasons == []


def test_hooks_tell_it_what_goes_on() -> None:
    told: list[tuple[int, str, bool]] = []

    class Notebook:
        def progress(self, step: int, doing: str, *, may_take_long: bool = False) -> None:
            told.append((step, doing, may_take_long))

    state: Any = type("State", (), {"step": 4})
    steps, save = Watched(Notebook()), TakesLong(Hook(), Notebook(), "saving")  # type: ignore[arg-type]
    for _ in range(2):
        for hook in (steps, save):
            hook.before_step(state)
        for hook in (steps, save):
            hook.after_step(state, None)  # type: ignore[arg-type]
    save.on_exit(state)
    step, pause = (4, "a step", False), (4, "saving", True)
    assert told == [(4, "the first step", True), step, pause, step, step, step, pause, step, pause]


def test_off_means_off(tmp_path: Path) -> None:
    with Watchdog(tmp_path, ResilienceConfig(hang_seconds=0), rank=0, world_size=1, end=pytest.fail) as watchdog:
        watchdog.progress(1, "a step")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hang_seconds": -1}, r"resilience\.hang_seconds = -1 must lie between 0 \(never\) and 2592000$"),
        ({"pause_seconds": 10}, r"pause_seconds = 10 must not be below resilience\.hang_seconds = 600"),
        ({"loss_spike_factor": 0.5}, r"loss_spike_factor = 0\.5 would call usual losses bad"),
        ({"max_bad_steps": -1}, r"max_bad_steps = -1 must lie between 0 and 1000000000$"),
        ({"loss_window": 0}, r"loss_window = 0 must be greater than 0"),
    ],
)
def test_limits_that_make_no_sense(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResilienceConfig(**changes)  # type: ignore[arg-type]

"""Ends a run that gets no further, and says which rank holds it up.

A thread of every process counts the time since the main thread last reported progress, and writes a heartbeat to
the run folder. Ranks train in step, so when one stands still all do, and each notices by itself: it writes its stacks,
waits for the last word of the others and compares. A process that is stopped, killed or cut off writes none: so it is
known.
"""

import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TextIO

import psutil

from ultramem_megatron.config.resilience import ResilienceConfig
from ultramem_megatron.errors import RankLostError, names_broken_connection
from ultramem_megatron.training import heartbeat
from ultramem_megatron.training.heartbeat import Heartbeat
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.state import StepResult, TrainState

logger = logging.getLogger(__name__)

LONGEST_BEAT_SECONDS = 20.0
"""A thousand ranks write a thousand small files in this time."""
BEATS_PER_LIMIT = 20
SILENT_BEATS = 3
"""A rank that runs writes at least one heartbeat in so many."""
LOST_POLLS = 20
LOST_POLL_SECONDS = 0.1
"""The kernel closes a killed process's connections before the process is gone."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """What the main thread does now. Replaced as a whole, so the thread never sees half of it."""

    number: int
    step: int
    doing: str
    limit_seconds: float


class Watchdog:
    """A context manager around the loop. Off when ``resilience.hang_seconds`` is 0: then nothing is written."""

    def __init__(
        self, run_dir: Path, config: ResilienceConfig, *, rank: int, world_size: int, end: Callable[[str], None]
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            run_dir: Gets ``watchdog/`` with a heartbeat and the stacks of every rank.
            config: The limits.
            rank: Of this process.
            world_size: Number of ranks.
            end: Called by the thread with the reason when the run is hung; ends the process.
        """
        self._folder, self._config, self._end = run_dir / heartbeat.WATCHDOG_FOLDER, config, end
        self._rank, self._world_size = rank, world_size
        self._beat_seconds = min(LONGEST_BEAT_SECONDS, max(config.hang_seconds, 1.0) / BEATS_PER_LIMIT)
        self._mark = _Mark(0, 0, "the first step", config.pause_seconds)
        self._beat = Heartbeat(
            rank=rank,
            host=heartbeat.machine_name(),
            pid=os.getpid(),
            process_started=psutil.Process().create_time(),
            beats=0,
            step=0,
            doing="",
        )
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @property
    def is_on(self) -> bool:
        """Whether anything is watched."""
        return self._config.hang_seconds > 0

    def progress(self, step: int, doing: str, *, may_take_long: bool = False) -> None:
        """The main thread gets on; ``step`` steps are done and it begins to do something else."""
        limit = self._config.pause_seconds if may_take_long else self._config.hang_seconds
        self._mark = _Mark(self._mark.number + 1, step, doing, limit)

    def __enter__(self) -> "Watchdog":
        if self.is_on:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stacks: TextIO = heartbeat.stack_file(self._folder, self._rank).open("a")
            faulthandler.register(signal.SIGUSR2, file=self._stacks)
            self._write(self._mark)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_on:
            self._done.set()
            self._thread.join(self._beat_seconds)
            faulthandler.unregister(signal.SIGUSR2)
            self._stacks.close()
            self._save(replace(self._beat, has_left=True))
            if error is not None and names_broken_connection(str(error)):
                self._name_lost(error)

    def _name_lost(self, error: BaseException) -> None:
        """A connection broke: whose, if it was that of a process of this machine.

        Raises:
            RankLostError: A rank is gone without a word.
        """
        for _ in range(LOST_POLLS):
            lost = heartbeat.lost_ranks(heartbeat.read_heartbeats(self._folder, self._world_size))
            if lost:
                who = " and ".join(f"rank {beat.rank} on {beat.host} (pid {beat.pid})" for beat in lost[:4])
                raise RankLostError(f"killed by a signal, without a word of its own: {who}") from error
            time.sleep(LOST_POLL_SECONDS)

    def _watch(self) -> None:
        still_seconds, seen = 0.0, self._mark.number
        while not self._pause():
            mark = self._mark
            # beats are counted, not the clock: a whole job that was stopped and goes on is not hung
            still_seconds = still_seconds + self._beat_seconds if mark.number == seen else 0.0
            seen = mark.number
            self._write(mark)
            if still_seconds > mark.limit_seconds and self._judge(mark, still_seconds):
                return

    def _pause(self) -> bool:
        """Wait for a beat. Returns whether the loop is over."""
        return self._done.wait(self._beat_seconds)

    def _write(self, mark: _Mark, *, stands_still: bool = False) -> None:
        where, waits = heartbeat.place_of_main_thread() if stands_still else ("", False)
        self._beat = replace(
            self._beat,
            beats=self._beat.beats + 1,
            step=mark.step,
            doing=mark.doing,
            stands_still=stands_still,
            where=where,
            waits=waits,
        )
        self._save(self._beat)

    def _save(self, beat: Heartbeat) -> None:
        try:
            beat.write(self._folder)
        except OSError as error:  # a full disk is no reason to stop watching
            logger.warning("rank %d cannot write its heartbeat: %s", self._rank, error)

    def _judge(self, mark: _Mark, still_seconds: float) -> bool:
        """Compare with the other ranks, and end the run unless it goes on meanwhile."""
        self._write_stacks(f"{still_seconds:.0f} s without progress after step {mark.step} ({mark.doing})")
        before = heartbeat.read_heartbeats(self._folder, self._world_size)
        for _ in range(SILENT_BEATS):
            self._write(mark, stands_still=True)
            if self._pause() or self._mark.number != mark.number:
                logger.warning("rank %d goes on after %.0f s without progress", self._rank, still_seconds)
                return False
        after = heartbeat.read_heartbeats(self._folder, self._world_size)
        silent = heartbeat.silent_ranks(before, after, self._world_size)
        elsewhere = silent and all(beat.host != self._beat.host for rank, beat in after.items() if rank in silent)
        for _ in range(SILENT_BEATS if elsewhere else 0):
            # who is on their machine sees whether they are stopped or gone, and may say so first
            self._write(mark, stands_still=True)
            if self._pause() or self._mark.number != mark.number:
                return False
        who = heartbeat.blame(after, silent, self._world_size)
        heartbeat.ask_for_stacks([after[rank] for rank in silent if rank in after])
        self._end(f"no progress for {still_seconds:.0f} s ({mark.doing}): {who}; stacks of all ranks in {self._folder}")
        return True

    def _write_stacks(self, why: str) -> None:
        self._stacks.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self._rank}: {why}\n")
        self._stacks.flush()
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)


class Watched(Hook):
    """Tells the watchdog of steps. The first of a process may take long: it compiles, allocates and connects."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog, self.is_warm = watchdog, False

    def before_step(self, state: TrainState) -> None:
        self.watchdog.progress(
            state.step, "a step" if self.is_warm else "the first step", may_take_long=not self.is_warm
        )

    def after_step(self, state: TrainState, result: StepResult) -> None:
        self.is_warm = True
        self.watchdog.progress(state.step, "a step")


class TakesLong(Hook):
    """Another hook, which may take its time."""

    def __init__(self, hook: Hook, watchdog: Watchdog, doing: str) -> None:
        self.hook, self.watchdog, self.doing = hook, watchdog, doing

    def before_step(self, state: TrainState) -> None:
        self.hook.before_step(state)

    def after_step(self, state: TrainState, result: StepResult) -> None:
        self.watchdog.progress(state.step, self.doing, may_take_long=True)
        self.hook.after_step(state, result)
        self.watchdog.progress(state.step, "a step")

    def on_exit(self, state: TrainState) -> None:
        self.watchdog.progress(state.step, self.doing, may_take_long=True)
        self.hook.on_exit(state)

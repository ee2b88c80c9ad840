"""The processes of a study: some at a time, each alone in its failure, all ended together."""

import contextlib
import datetime
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from ablation.runs import Run
from ultramem_megatron.metrics.catalogue import LOSS
from ultramem_megatron.units import format_seconds

ULTRAMEM = (sys.executable, "-m", "ultramem_launch")
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 15.0
GRACE_SECONDS = 60.0  # a run that is asked to stop ends its step and saves
LAST_WORDS = 12  # lines of a failed process that are shown


@dataclass(frozen=True)
class Command:
    """One process of a run."""

    what: str
    words: Sequence[str]
    tasks: Sequence[str] = ()
    """The tasks that it answers; none: it trains."""


@dataclass
class Job:
    """A run with its processes to come, and the one that is there."""

    run: Run
    commands: deque[Command]
    started: float = field(default_factory=time.monotonic)
    first_step: int = 0
    command: Command | None = None
    process: "subprocess.Popen[bytes] | None" = None


class Crew:
    """Works through runs, ``jobs`` at a time."""

    def __init__(self, *, jobs: int, threads: int, machine: Mapping[str, Any], lock: int) -> None:
        """``machine`` goes into the record of each run. ``lock`` is an open file that the processes inherit: it stays
        locked until the last of them is gone, even if this one is killed."""
        self.jobs, self.machine, self.lock = jobs, dict(machine), lock
        # torch asks for as many threads as there are cores; the limit holds whatever it asks for
        numbers = {"OMP_NUM_THREADS": str(threads), "OMP_THREAD_LIMIT": str(threads)}
        self.environment = {**os.environ, **numbers}
        self.active: list[Job] = []

    def work(self, jobs: Sequence[Job]) -> None:
        """Do ``jobs`` to the end.

        Raises:
            KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP came; all processes are gone.
        """
        waiting = deque(jobs)
        said = time.monotonic()
        with _signals_interrupt():
            try:
                while waiting or self.active:
                    while waiting and len(self.active) < self.jobs:
                        self._begin(waiting.popleft(), len(jobs) - len(waiting), len(jobs))
                    time.sleep(POLL_SECONDS)
                    self.active = [job for job in self.active if self._goes_on(job)]
                    if time.monotonic() - said > PROGRESS_SECONDS:
                        said = time.monotonic()
                        for job in self.active:
                            say(f"{job.run.name}: {progress(job)}")
            except KeyboardInterrupt:
                self._stop()
                raise

    def _begin(self, job: Job, position: int, total: int) -> None:
        job.run.folder.mkdir(parents=True, exist_ok=True)
        job.started, job.first_step = time.monotonic(), job.run.last_step
        resumed = f", from step {job.first_step}" if 0 < job.first_step < job.run.steps else ""
        say(f"{job.run.name}: begins, {position} of {total}{resumed}")
        self.active.append(job)
        self._start_next(job)

    def _start_next(self, job: Job) -> None:
        job.command = job.commands.popleft()
        with job.run.log.open("ab") as log:
            log.write(f"$ {shlex.join(['ultramem', *job.command.words])}\n".encode())
            log.flush()
            job.process = subprocess.Popen(
                [*ULTRAMEM, *job.command.words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self.lock,),
                start_new_session=True,  # Ctrl-C is for this process, which then asks the others
            )

    def _goes_on(self, job: Job) -> bool:
        """Look after a job; False when there is nothing more to wait for."""
        assert job.process is not None and job.command is not None
        status = job.process.poll()
        if status is None:
            return True
        problem = _problem_of(job.run, job.command, status)
        if job.command.tasks:
            job.run.write_record(**{**job.run.record, "problem": problem})
        else:
            today = datetime.datetime.now().astimezone().date().isoformat()
            job.run.write_record(trained=not problem, problem=problem, date=today, **self.machine)
        if problem:
            say(f"{job.run.name}: FAILED: {problem}\n{_last_words(job.run)}")
            return False
        if job.commands:
            self._start_next(job)
            return True
        say(f"{job.run.name}: done, {progress(job)}")
        return False

    def _stop(self) -> None:
        """Ask all to save and end; after a while, or at a second Ctrl-C, end them."""
        say("asked the runs to save and stop; Ctrl-C again ends them at once")
        processes = [job.process for job in self.active if job.process is not None]
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            while time.monotonic() < deadline and None in [process.poll() for process in processes]:
                time.sleep(POLL_SECONDS)
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def jobs_of(runs: Sequence[Run], tasks: Sequence[str]) -> list[Job]:
    """The runs that are not finished, each with what it lacks."""
    jobs = [Job(run, deque(_commands_of(run, tasks))) for run in runs]
    return [job for job in jobs if job.commands]


def _commands_of(run: Run, tasks: Sequence[str]) -> Iterator[Command]:
    folder = ("--run-dir", str(run.folder))
    if not run.is_trained:
        yield Command("training", ("pretrain", run.recipe, *run.settings, *folder))
    unanswered = [task for task in tasks if run.answer(task) is None]
    if unanswered:
        asked = [word for task in unanswered for word in ("--task", task)]
        yield Command("eval", ("eval", *folder, *asked), unanswered)


def _problem_of(run: Run, command: Command, status: int) -> str:
    """What went wrong with a process that ended; empty when nothing did."""
    if status:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
        return f"{command.what} {how}, step {run.last_step} of {run.steps}"
    if not command.tasks and run.last_step < run.steps:
        return f"{command.what} ended well, but at step {run.last_step} of {run.steps}"
    unanswered = [task for task in command.tasks if run.answer(task) is None]
    return f"{command.what} left no result of {', '.join(unanswered)} after step {run.steps}" if unanswered else ""


# --- What is told -----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """A line with the time of day."""
    print(f"{datetime.datetime.now():%H:%M:%S}  {text}", flush=True)


def progress(job: Job) -> str:
    """``step 120/240, loss 5.2249, 1:02 elapsed, ends about 14:32 (in 1:01)``."""
    records, run = job.run.newest_records(), job.run
    elapsed = format_seconds(max(1.0, time.monotonic() - job.started))
    if job.command is not None and job.command.tasks and job.process is not None and job.process.poll() is None:
        return f"eval {' '.join(job.command.tasks)}, {elapsed} elapsed"
    if not records:
        return f"no step yet, {elapsed} elapsed"
    last = records[-1]
    text = f"step {last['step']:.0f}/{run.steps}, loss {last[LOSS.name]:.4f}, {elapsed} elapsed"
    ours = [record for record in records if record["step"] > job.first_step]
    if len(ours) < 2 or last["step"] >= run.steps:
        return text
    pace = (ours[-1]["time"] - ours[0]["time"]) / (ours[-1]["step"] - ours[0]["step"])
    left = max(0.0, pace * (run.steps - last["step"]) - (time.time() - last["time"]))
    end = datetime.datetime.now() + datetime.timedelta(seconds=left)
    return f"{text}, ends about {end:%H:%M} (in {format_seconds(max(1.0, left))})"


def _last_words(run: Run) -> str:
    lines = run.log.read_text(errors="replace").splitlines()[-LAST_WORDS:]
    return "\n".join([f"  last words of {run.log}:", *(f"  | {line}" for line in lines)])


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP act as Ctrl-C does, unless they are ignored (nohup). SIGINT does so even if it is ignored: a
    shell script lets its background jobs ignore it, and then nothing but SIGKILL would be left."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            if number == signal.SIGINT or handler is not signal.SIG_IGN:
                signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

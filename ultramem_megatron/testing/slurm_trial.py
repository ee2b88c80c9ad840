"""One job on a local Slurm that something happens to, and what is noted of it. Used by ``slurm_faults.py``."""

import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultramem_megatron.testing.kills import Ending, curve_of, difference, ending_of
from ultramem_megatron.testing.slurm_jobs import Slurm, attempts_of, newest_step, status_of, wait_until

STEPS = 40
INTERVAL = 10
"""Steps between checkpoints."""
BATCH = 8
SETTINGS = (f"training.steps={STEPS}", f"training.global_batch_size={BATCH}", f"checkpoint.interval={INTERVAL}")
PACE_SECONDS = 0.2
"""Added to each step of a job's first start, so that there is time for the damage."""
VICTIM, VICTIM_NODE = 3, "n2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What came of one fault."""

    fault: str
    what: str
    """Of the fault, for people."""
    detected_seconds: float | None = None
    """From the damage until it stood in the run folder."""
    outcomes: tuple[str, ...] = ()
    """Of every start of the job, oldest first."""
    reason: str = ""
    exit_status: int | None = None
    """Of the job."""
    log_line: str = ""
    lost: str = ""
    """What the run lost, next to one that nobody disturbed."""
    problems: tuple[str, ...] = ()
    """In which it is not as defined; empty for a fault that went as it should."""
    seconds: float = 0.0


@dataclass(slots=True)
class Trial:
    """One job, and what is noted of it."""

    slurm: Slurm
    config: Path
    run_dir: Path
    undisturbed: Ending
    job: str = ""
    exit_status: int | None = None
    detected_seconds: float | None = None
    reason: str = ""
    log_line: str = ""
    outcomes: tuple[str, ...] = ()
    lost: str = "nothing: the same bits"
    problems: list[str] = field(default_factory=list)

    def submit(self, *settings: str, **variables: str) -> None:
        """Two nodes, no checks before the run."""
        options = ("--nodes", "2", "--tasks-per-node", "2", "--preflight", "none", "--max-restarts", "2")
        pace = {"FAULT_PACE_SECONDS": str(PACE_SECONDS)}
        self.job = self.slurm.submit(self.config, (*SETTINGS, *settings), self.run_dir, *options, **pace | variables)

    def wait(self, condition: Callable[[], object]) -> None:
        """Until it is true, or the job is over."""
        wait_until(condition, self.run_dir)

    def wait_for_step(self, step: int) -> None:
        """Until it is reported."""
        self.wait(lambda: newest_step(self.run_dir) >= step)

    def send(self, number: signal.Signals) -> float:
        """To the rank that all faults hit. Returns the time."""
        self.slurm.rank_process(self.job, VICTIM).send_signal(number)
        return time.time()

    def wait_for_end(self, start: int) -> dict[str, Any]:
        """Of a start of the job, from 0. Returns it, with the time at which its reason stood there as ``noticed``."""
        self.wait(lambda: len(attempts_of(self.run_dir)) > start and attempts_of(self.run_dir)[start]["outcome"])
        attempt = attempts_of(self.run_dir)[start]
        status = status_of(self.run_dir)
        known = status and (status["attempt"], status["reason"]) == (attempt["name"], attempt["reason"])
        return attempt | {"noticed": status["time"] if known else attempt["ended"]}

    def finish(self) -> None:
        """Wait for the job's end, and note its exit status."""
        ended = self.slurm.wait_for(self.job, self.run_dir)
        self.exit_status = int(ended["ExitCode"].partition(":")[0])

    def expect(self, condition: object, otherwise: str) -> None:
        """Note a problem unless it is true."""
        if not condition:
            self.problems.append(otherwise)

    def expect_starts(self, *outcomes: str) -> None:
        """Of the whole run."""
        self.outcomes = found = tuple(str(attempt["outcome"]) for attempt in attempts_of(self.run_dir))
        self.expect(found == outcomes, f"starts ended as {', '.join(found)} instead of {', '.join(outcomes)}")

    def expect_reason(self, reason: str, pattern: str) -> None:
        """It becomes the reason of the fault, and must match."""
        self.reason = reason
        self.expect(re.search(pattern, reason), f'the reason "{reason}" does not match "{pattern}"')

    def expect_logged(self, pattern: str) -> None:
        """A line of any log; it becomes the log line of the fault."""
        for file in sorted((self.run_dir / "logs").glob("*.log")):
            for line in file.read_text(errors="replace").splitlines():
                if re.search(pattern, line):
                    self.log_line = line
                    return
        self.problems.append(f'no log has a line with "{pattern}"')

    def expect_exit(self, status: int) -> None:
        """Of the job, and of the status file."""
        said = status_of(self.run_dir).get("exit_status")
        self.expect(
            (self.exit_status, said) == (status, status),
            f"the job's exit status is {self.exit_status}, that in status.json {said}, instead of {status}",
        )

    def expect_same_bits(self) -> None:
        """As in the run that nobody touched: every step once, weights and optimizer at the end."""
        found = difference(ending_of(self.run_dir, STEPS), self.undisturbed)
        if found:
            self.lost = found
            self.problems.append(f"not the same as undisturbed: {found}")

    def expect_same_until(self, step: int) -> None:
        """The steps before a bad one."""
        ours = curve_of(self.run_dir)[:step]
        self.expect(ours == self.undisturbed.curve[:step], f"steps 1 to {step} are not those of the undisturbed run")

    def expect_every_step_once(self) -> None:
        """In ``metrics.jsonl``."""
        steps = [int(row[0]) for row in curve_of(self.run_dir)]
        self.expect(steps == list(range(1, STEPS + 1)), "not every step stands once in metrics.jsonl")

    def _without_paths(self, text: str) -> str:
        return text.replace(f"{self.run_dir}", "RUN_DIR")

    def found(self, fault: str, what: str, seconds: float) -> Found:
        """What came of it."""
        return Found(
            fault=fault,
            what=what,
            detected_seconds=self.detected_seconds,
            outcomes=self.outcomes,
            reason=self._without_paths(self.reason),
            exit_status=self.exit_status,
            log_line=self._without_paths(self.log_line),
            lost="" if self.problems else self.lost,
            problems=tuple(self.problems),
            seconds=seconds,
        )

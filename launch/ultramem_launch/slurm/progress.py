"""How a job and its run stand: Slurm's word, the run's own, and how far it is."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramem_launch.ending import RULES, Ending, read_ending
from ultramem_launch.slurm.client import UNREACHABLE, JobState, find_state
from ultramem_launch.slurm.folder import JobFolder
from ultramem_megatron.errors import one_paragraph
from ultramem_megatron.metrics import catalogue
from ultramem_megatron.monitor.records import METRICS_FILE, decode_record

ACTIVE = (
    *("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"),
    UNREACHABLE,  # a controller restarts, and its jobs go on
)
TAIL_BYTES = 1 << 20


def is_active(state: str) -> bool:
    """Whether the job may still train."""
    return state.startswith(ACTIVE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """One look at a run."""

    run_dir: Path
    job: JobState
    steps: int
    """Of the whole run."""
    record: dict[str, float]
    """The newest line of its metrics; empty before the first step."""
    checkpoint_step: int
    ending: Ending | None
    attempts: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run_dir": str(self.run_dir),
            "job": self.job.job,
            "state": self.job.state,
            "reason": self.job.reason,
            "nodes": self.job.nodes,
            "time_left": self.job.time_left,
            "restarts": self.job.restarts,
            "step": int(self.record.get("step", 0)),
            "steps": self.steps,
            "metrics": self.record,
            "checkpoint_step": self.checkpoint_step,
            "ending": self.ending.to_dict() if self.ending else None,
            "attempts": self.attempts,
        }


def look(run_dir: Path) -> Progress:
    """Ask Slurm and read the run folder.

    Raises:
        LaunchError: No job was submitted for it.
    """
    from ultramem_megatron.config.load import load_run_config

    folder = JobFolder(run_dir)
    jobs = [find_state(job) for job in folder.job_ids()]
    # of a chain, the one that runs or comes next
    current = next((job for job in jobs if is_active(job.state)), jobs[-1])
    return Progress(
        run_dir=run_dir,
        job=current,
        steps=load_run_config(folder.config).training.steps,
        record=newest_record(run_dir / METRICS_FILE),
        checkpoint_step=folder.newest_step(),
        ending=read_ending(run_dir),
        attempts=folder.read_attempts(),
    )


def newest_record(path: Path) -> dict[str, float]:
    """The last whole line with a loss, from the end of the file; empty if there is none."""
    if not path.is_file():
        return {}
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
        for line in reversed(stream.read().splitlines()):
            record = decode_record(line)
            if record is not None and catalogue.LOSS.name in record and "time" in record:
                return record
    return {}


def describe(progress: Progress) -> str:
    """A few lines for people."""
    job, record = progress.job, progress.record
    where = f" on {job.nodes}" if job.nodes else ""
    more = [job.reason, f"{job.time_left} left" if job.time_left and job.state == "RUNNING" else ""]
    more.append(f"restarted {_count(job.restarts, 'time')}" if job.restarts else "")
    lines = [f"job {job.job}  {job.state}{where}" + "".join(f", {words}" for words in more if words)]
    if record:
        ago = max(0.0, time.time() - record["time"])
        speed = record.get(catalogue.TOKENS_PER_SECOND.name)
        lines.append(
            f"step {int(record['step'])} of {progress.steps}, loss {record[catalogue.LOSS.name]:.4f}"
            + (f", {speed:,.0f} tokens/s" if speed else "")
            + f", {ago:.0f} s ago; newest checkpoint: step {progress.checkpoint_step}"
        )
    else:
        lines.append(f"no step yet of {progress.steps}")
    for attempt in progress.attempts:
        end = f"{attempt['outcome']}" if attempt["outcome"] else "runs"
        reason = f" ({one_paragraph(attempt['reason'])})" if attempt["reason"] else ""
        aside = attempt.get("set_aside")
        reason += f"; set the checkpoint of step {aside} aside" if aside is not None else ""
        until = "" if attempt["last_step"] is None else f" to {attempt['last_step']}"
        steps = f"from step {attempt['first_step']}{until}"
        lines.append(f"  start {attempt['name']}: {_count(attempt['nodes'], 'node')}, {steps}, {end}{reason}")
    if progress.ending is not None and not is_active(job.state):
        ending = progress.ending
        lines.append(one_paragraph(f"ended: {ending.outcome}: {ending.reason or RULES[ending.outcome].meaning}"))
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

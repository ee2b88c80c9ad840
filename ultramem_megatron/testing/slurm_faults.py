"""Faults in jobs on a real Slurm: each is put in from outside, and its outcome compared with the one defined for it.

Used by ``tools/slurm_faults``. A fault is a function in ``FAULTS`` that submits a job, waits for the moment, does the
damage, and says what must follow. All jobs train the same few steps on two nodes with two ranks each.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ultramem_megatron.checkpoint.store import checkpoint_folders
from ultramem_megatron.testing.kills import Ending
from ultramem_megatron.testing.slurm_jobs import Slurm, attempts_of, logs_of
from ultramem_megatron.testing.slurm_trial import BATCH, INTERVAL, STEPS, VICTIM, VICTIM_NODE, Found, Trial

AFTER_STEP = 15
HANG_SECONDS = 8.0
MAX_BAD_STEPS = 3
TMPFS_BYTES = 64 << 20


def killed_rank(trial: Trial) -> None:
    """SIGKILL of one rank"""
    trial.submit()
    trial.wait_for_step(AFTER_STEP)
    began = trial.send(signal.SIGKILL)
    start = trial.wait_for_end(0)
    trial.detected_seconds = start["noticed"] - began
    trial.expect_reason(start["reason"], rf"^rank {VICTIM} on {VICTIM_NODE} was killed by SIGKILL")
    trial.expect_logged(rf"^failed: rank {VICTIM} on {VICTIM_NODE} was killed by SIGKILL.*starts again")
    trial.finish()
    trial.expect_starts("failed", "finished")
    trial.expect_exit(0)
    trial.expect_same_bits()


def stopped_rank(trial: Trial) -> None:
    """SIGSTOP of one rank"""
    trial.submit(f"resilience.hang_seconds={HANG_SECONDS}", "resilience.pause_seconds=60")
    trial.wait_for_step(AFTER_STEP)
    began = trial.send(signal.SIGSTOP)
    start = trial.wait_for_end(0)
    trial.detected_seconds = start["noticed"] - began
    who = rf"rank {VICTIM} on {VICTIM_NODE} \(pid \d+\) stands after step \d+: its process is stopped"
    trial.expect_reason(start["reason"], who)
    trial.expect_logged(rf"^hung: .*{who}")
    trial.expect((trial.run_dir / "watchdog" / f"rank_{VICTIM:05d}.stacks.txt").stat().st_size, "no stacks")
    trial.finish()
    trial.expect_starts("hung", "finished")
    trial.expect_exit(0)
    trial.expect_same_bits()


def nan_skipped(trial: Trial) -> None:
    """NaN in one gradient, once; skipped"""
    _nan(trial, str(AFTER_STEP))
    trial.expect_logged(rf"bad_step: step {AFTER_STEP}: the gradient norm is nan")
    trial.finish()
    trial.expect_starts("finished")
    trial.expect_exit(0)
    trial.expect_same_until(AFTER_STEP - 1)
    trial.expect_every_step_once()
    trial.lost = f"the update of step {AFTER_STEP}, as defined"


def nan_rolled_back(trial: Trial) -> None:
    """NaN in one gradient, once; back to a checkpoint"""
    _nan(trial, str(AFTER_STEP), "resilience.bad_step=roll_back")
    trial.expect_logged(rf"bad_step: step {AFTER_STEP}: the gradient norm is nan; goes back to step_0*{INTERVAL} ")
    trial.finish()
    trial.expect_starts("finished")
    trial.expect_exit(0)
    trial.expect_same_until(INTERVAL)
    trial.expect_every_step_once()
    trial.lost = f"{2 * BATCH} samples of 2 steps, left out as defined"


def nan_always(trial: Trial) -> None:
    """NaN in one gradient of every step"""
    _nan(trial, f"{AFTER_STEP}-", f"resilience.max_bad_steps={MAX_BAD_STEPS}")
    trial.finish()
    start = trial.wait_for_end(0)
    trial.expect_reason(start["reason"], rf"step {AFTER_STEP + MAX_BAD_STEPS}: the gradient norm is nan")
    trial.expect_logged(r"^diverged: ")
    trial.expect_starts("diverged")
    trial.expect_exit(81)
    trial.expect_same_until(AFTER_STEP - 1)
    newest = checkpoint_folders(trial.run_dir / "checkpoints")[0].name
    trial.expect(newest == f"step_{INTERVAL:08d}", f"the newest checkpoint is {newest}")
    trial.lost = f"steps after the checkpoint of step {INTERVAL}, which is kept"


def _nan(trial: Trial, when: str, *settings: str) -> None:
    note = trial.run_dir.with_name(f"{trial.run_dir.name}.injected_at")
    trial.submit(*settings, FAULT_NAN_AT_STEP=when, FAULT_NOTE=str(note))
    events = trial.run_dir / "events.jsonl"
    trial.wait(lambda: events.is_file() and re.search(r'"bad_step".*\n', events.read_text()))
    event = next(json.loads(line) for line in events.read_text().splitlines() if '"bad_step"' in line)
    trial.detected_seconds = event["time"] - float(note.read_text())
    trial.reason = event["words"]


def full_disk(trial: Trial) -> None:
    """no room in the folder of checkpoints"""
    with tmpfs(trial.run_dir / "checkpoints"):
        logged = rf"^out_of_disk: no checkpoint of step {3 * INTERVAL}"
        _fill_and_mend(trial, trial.run_dir / "checkpoints" / "filler", "No space left on device", logged)


def full_run_folder(trial: Trial) -> None:
    """no room in the whole run folder"""
    with tmpfs(trial.run_dir):
        # nobody could write more than this
        words = "no room is left in the run folder; checkpoints are as they were"
        _fill_and_mend(trial, trial.run_dir / "filler", words, f"^out_of_disk: {words}")


def _fill_and_mend(trial: Trial, filler: Path, reason: str, logged: str) -> None:
    trial.submit()
    trial.wait_for_step(AFTER_STEP)
    began = fill(filler)
    trial.finish()
    start = trial.wait_for_end(0)
    trial.detected_seconds = start["noticed"] - began
    trial.expect_reason(start["reason"], reason)
    trial.expect_logged(logged)
    trial.expect_starts("out_of_disk")
    trial.expect_exit(82)
    newest = checkpoint_folders(trial.run_dir / "checkpoints")[0]
    trial.expect(newest.name == f"step_{INTERVAL:08d}", f"the newest checkpoint is {newest.name}")
    filler.unlink()
    checked = trial.slurm.ultramem("checkpoint", "verify", str(newest), cwd=trial.config.parent)
    trial.expect(checked.returncode == 0, f"{newest} is damaged: {checked.stderr}")
    exit_status = trial.exit_status
    trial.submit()
    trial.finish()
    trial.expect_starts("out_of_disk", "finished")
    trial.expect_exit(0)
    trial.expect_same_bits()
    trial.exit_status = exit_status


def damaged_checkpoint(trial: Trial) -> None:
    """a byte of the newest checkpoint flipped between two starts"""
    trial.submit()
    trial.wait_for_step(2 * INTERVAL + 5)
    trial.send(signal.SIGKILL)
    trial.wait_for_end(0)
    newest = checkpoint_folders(trial.run_dir / "checkpoints")[0]
    flip_byte(max(newest.glob("*.distcp"), key=lambda file: file.stat().st_size))
    trial.wait(lambda: len(attempts_of(trial.run_dir)) > 1)
    log = trial.run_dir / "logs" / f"{trial.job}.1.log"
    trial.wait(lambda: log.is_file() and "resumed from" in log.read_text(errors="replace"))
    trial.detected_seconds = time.time() - attempts_of(trial.run_dir)[1]["started"]
    trial.expect_logged(rf"checkpoint .*{newest.name}.* is damaged")
    trial.reason = trial.log_line.partition(": ")[2]
    before = newest.parent / f"step_{INTERVAL:08d}"
    trial.expect(f"resumed from {before}: step {INTERVAL} of {STEPS}" in log.read_text(), "another start than expected")
    trial.finish()
    trial.expect_starts("failed", "finished")
    trial.expect_exit(0)
    trial.expect_same_bits()


FAULTS: dict[str, Callable[[Trial], None]] = {
    "killed": killed_rank,
    "stopped": stopped_rank,
    "nan-skipped": nan_skipped,
    "nan-rolled-back": nan_rolled_back,
    "nan-always": nan_always,
    "full-disk": full_disk,
    "full-run-folder": full_run_folder,
    "damaged-checkpoint": damaged_checkpoint,
}


def try_fault(name: str, slurm: Slurm, config: Path, folder: Path, undisturbed: Ending) -> Found:
    """One job, from its submission to its end.

    Args:
        name: Of ``FAULTS``.
        slurm: Two nodes.
        config: Of every run; ``SETTINGS`` come on top.
        folder: Gets the run folder.
        undisturbed: What every run must come to.
    """
    started = time.monotonic()
    trial = Trial(slurm, config, folder / name, undisturbed)
    try:
        FAULTS[name](trial)
    except (OSError, RuntimeError, ValueError, LookupError, subprocess.SubprocessError) as error:
        trial.problems.append(f"{type(error).__name__}: {error}\n{logs_of(trial.run_dir)}")
        if trial.job:
            slurm.call("scancel", "--full", trial.job)
    return trial.found(name, str(FAULTS[name].__doc__), time.monotonic() - started)


@contextmanager
def tmpfs(folder: Path) -> Iterator[None]:
    """A disk of its own, and a small one. Needs root."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(filler: Path) -> float:
    """Take what is free on the disk, to the last byte. Returns the time."""
    free = os.statvfs(filler.parent)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, free.f_bavail * free.f_frsize)
    return time.time()


def flip_byte(file: Path) -> None:
    """In the middle."""
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 0xFF]))

"""The files of a job beside its run: ``RUN_DIR/job/`` and ``RUN_DIR/logs/``."""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramem_launch.slurm.attempts import Attempt
from ultramem_megatron.checkpoint.set_aside import is_set_aside
from ultramem_megatron.checkpoint.store import checkpoint_folders, step_folder
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.files import failures_named, write_json

JOB_ID = re.compile(r"[0-9]+(_[0-9]+)?")

logger = logging.getLogger(__name__)


def read_list(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list; of a torn one those before the tear, and the file is named. [] without a file.

    Raises:
        FileError: It cannot be read.
    """
    with failures_named(path, "read"):
        if not path.is_file():
            return []
        text = path.read_bytes().decode(errors="replace")
    found: list[dict[str, Any]] = []
    position, decoder = 0, json.JSONDecoder()
    while (start := text.find("{", position)) >= 0:
        try:
            entry, position = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            break
        found.append(entry)
    if not _is_json(text):
        logger.warning("%s is damaged: %d entries of it can be read, and the rest is passed over", path, len(found))
    return found


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class JobFolder:
    """Paths, named once."""

    run_dir: Path

    @property
    def job(self) -> Path:
        """Everything that was fixed when the job was submitted, and the helper's notes."""
        return self.run_dir / "job"

    @property
    def logs(self) -> Path:
        """``<job id>.log`` of the script, ``<job id>.<restart>.log`` of the ranks."""
        return self.run_dir / "logs"

    @property
    def config(self) -> Path:
        """All settings, resolved."""
        return self.job / "config.yaml"

    @property
    def code(self) -> Path:
        """With --copy-code: the packages."""
        return self.job / "code"

    @property
    def script(self) -> Path:
        """What was submitted."""
        return self.job / "pretrain.sbatch"

    @property
    def version(self) -> Path:
        """Which code and packages."""
        return self.job / "version.json"

    @property
    def submissions(self) -> Path:
        """Job ids, oldest first."""
        return self.job / "submissions.json"

    @property
    def attempts(self) -> Path:
        """Every start of every job, with its end."""
        return self.job / "attempts.json"

    @property
    def exclude(self) -> Path:
        """Nodes that the next start does without, as Slurm lists them."""
        return self.job / "exclude"

    @property
    def reserve(self) -> Path:
        """Room for last words (``reserve.py``)."""
        return self.job / ".reserve"

    @property
    def nodes(self) -> Path:
        """How many of the allocated nodes this start uses."""
        return self.job / "nodes"

    def preflight(self, attempt: str) -> Path:
        """What the nodes say of themselves."""
        return self.job / "preflight" / attempt

    def job_ids(self) -> list[str]:
        """Of all jobs submitted for this run, oldest first.

        Raises:
            LaunchError: None was.
        """
        if not self.submissions.is_file():
            raise LaunchError(
                f"--run-dir {self.run_dir}: no job was submitted for it; name the folder given to `ultramem submit`"
            )
        jobs = self._known_jobs()
        if not jobs:
            raise LaunchError(
                f"{self.submissions} is damaged, and no job can be read from it; `squeue --me` lists the jobs that are "
                "there; delete the file, and `ultramem submit` writes it anew"
            )
        return jobs

    def add_submission(self, job: str, task: int | None = None) -> None:
        """Note one more job, ``task`` of an array."""
        before = self._known_jobs() if self.submissions.is_file() else []
        new = job if task is None else f"{job}_{task}"
        write_json(self.submissions, [{"job": one} for one in [*before, new]])

    def _known_jobs(self) -> list[str]:
        entries = (entry.get("job") for entry in read_list(self.submissions))
        return [job for job in entries if isinstance(job, str) and JOB_ID.fullmatch(job)]

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of ``step`` lies."""
        return step_folder(self.run_dir / "checkpoints", step)

    def usable_steps(self) -> list[int]:
        """Of the finished checkpoints that are not set aside, newest first."""
        found = [folder for folder in checkpoint_folders(self.run_dir / "checkpoints") if not is_set_aside(folder)]
        names = (folder.name.removeprefix("step_") for folder in found)
        return [int(name) for name in names if name.isdecimal()]  # a user may keep a copy beside them

    def newest_step(self) -> int:
        """Of the checkpoint that the next start goes on from; 0 without one."""
        return next(iter(self.usable_steps()), 0)

    def read_attempts(self) -> list[dict[str, Any]]:
        """Oldest first."""
        return [entry for entry in read_list(self.attempts) if Attempt.is_sound(entry)]

    def log_files(self) -> Iterator[Path]:
        """Oldest first."""
        yield from sorted(self.logs.glob("*.log"), key=lambda file: file.stat().st_mtime)

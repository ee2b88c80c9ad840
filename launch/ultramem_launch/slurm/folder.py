"""The files of a job beside its run: ``RUN_DIR/job/`` and ``RUN_DIR/logs/``."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramem_megatron.checkpoint.set_aside import is_set_aside
from ultramem_megatron.checkpoint.store import checkpoint_folders, step_folder
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.files import write_json


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
        return [entry["job"] for entry in json.loads(self.submissions.read_text())]

    def add_submission(self, job: str, task: int | None = None) -> None:
        """Note one more job, ``task`` of an array."""
        before = json.loads(self.submissions.read_text()) if self.submissions.is_file() else []
        write_json(self.submissions, [*before, {"job": job if task is None else f"{job}_{task}"}])

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
        return json.loads(self.attempts.read_text()) if self.attempts.is_file() else []

    def log_files(self) -> Iterator[Path]:
        """Oldest first."""
        yield from sorted(self.logs.glob("*.log"), key=lambda file: file.stat().st_mtime)

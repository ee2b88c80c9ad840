"""The logs of a job as one text: its script's, and its ranks' of every start."""

import sys
import time
from pathlib import Path

from ultramem_launch.slurm.folder import JobFolder
from ultramem_launch.slurm.progress import is_active, look
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.files import failures_named

POLL_SECONDS = 0.5
ASK_SECONDS = 5.0


def last_lines(run_dir: Path, lines: int) -> str:
    """The ends of all logs, oldest first.

    Raises:
        LaunchError: No job was submitted for this folder, or it has not started yet.
    """
    folder = JobFolder(run_dir)
    files = list(folder.log_files())
    if not files:
        jobs = ", ".join(folder.job_ids())
        raise LaunchError(f"{folder.logs} is empty: job {jobs} has not started; `ultramem status` says why")
    return "".join(f"==> {file.name} <==\n{_tail(file, lines)}" for file in files)


def _tail(file: Path, lines: int) -> str:
    with failures_named(file, "read"):
        text = file.read_text(errors="replace")
    kept = text.splitlines()[-lines:] if lines else []
    return "".join(f"{line}\n" for line in kept)


def follow_logs(run_dir: Path, lines: int) -> None:
    """Print the last lines, then what comes, from whichever log it comes, until the job has left the queue."""
    folder = JobFolder(run_dir)
    folder.job_ids()  # refuses a folder without a job
    read = {file: _offset_of_tail(file, lines) for file in folder.log_files()}
    shown: Path | None = None
    asked, active = float("-inf"), True
    while True:
        for file in folder.log_files():
            text = _read_from(file, read.get(file, 0))
            read[file] = read.get(file, 0) + len(text)
            if text and file != shown:
                print(f"==> {file.name} <==")
                shown = file
            sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()
        if not active:  # what it wrote before it ended was read after it was known to have ended
            return
        if time.monotonic() - asked > ASK_SECONDS:
            active, asked = is_active(look(run_dir).job.state), time.monotonic()
        else:
            time.sleep(POLL_SECONDS)


def _offset_of_tail(file: Path, lines: int) -> int:
    content = file.read_bytes()
    return len(content) - len(b"".join(content.splitlines(keepends=True)[-lines:] if lines else []))


def _read_from(file: Path, offset: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read()

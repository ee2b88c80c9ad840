"""``ultramem status``, ``logs``, ``cancel``, ``requeue``: about the job of a run folder."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

RunDir = Annotated[Path, typer.Option("--run-dir", help="Folder given to `ultramem submit`.")]


def status(
    run_dir: RunDir,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until the job has left the queue.")] = False,
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Between two looks.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a look.")] = False,
) -> None:
    """How a job stands: Slurm's word, steps done, loss, checkpoints, starts and why they ended.

    Example: ultramem status --run-dir runs/first --watch
    """
    from rich.console import Console

    from ultramem_launch.slurm.progress import describe, is_active, look

    while True:
        progress = look(run_dir)
        if watch and sys.stdout.isatty() and not as_json:
            Console().clear()
        typer.echo(json.dumps(progress.to_dict()) if as_json else describe(progress))
        if not watch or not is_active(progress.job.state):
            return
        time.sleep(interval)


def logs(
    run_dir: RunDir,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has left the queue.")] = False,
    lines: Annotated[int, typer.Option(min=0, help="Of what is there, the last so many of each log.")] = 20,
) -> None:
    """Print what the job's script and its ranks write; ranks are labelled by their number.

    Example: ultramem logs --run-dir runs/first --follow
    """
    from ultramem_launch.slurm.follow import follow_logs, last_lines

    if follow:
        follow_logs(run_dir, lines)
    else:
        typer.echo(last_lines(run_dir, lines), nl=False)


def cancel(run_dir: RunDir) -> None:
    """End all jobs of a run. It saves first, and `ultramem submit` goes on from there.

    Example: ultramem cancel --run-dir runs/first
    """
    from ultramem_launch.slurm import client
    from ultramem_launch.slurm.folder import JobFolder
    from ultramem_launch.slurm.progress import is_active

    active = [job for job in JobFolder(run_dir).job_ids() if is_active(client.find_state(job).state)]
    for job in reversed(active):  # the last of a chain first, or it would start
        client.cancel(job)
    typer.echo(f"cancelled job {', '.join(active)}" if active else "no job of this run is in the queue")


def requeue(run_dir: RunDir) -> None:
    """End the running job, which saves, and put it back into the queue: after a change of nodes, say.

    Example: ultramem requeue --run-dir runs/first
    """
    from ultramem_launch.slurm import client
    from ultramem_launch.slurm.progress import is_active, look
    from ultramem_megatron.errors import LaunchError

    job = look(run_dir).job
    if not is_active(job.state):
        raise LaunchError(f"job {job.job} is {job.state}, no longer in the queue; `ultramem submit` starts another")
    client.requeue(job.job)
    typer.echo(f"requeued job {job.job}")

"""``ultramem submit`` without its options: plan, snapshot, script, sbatch."""

import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ultramem_launch.configs import load_config
from ultramem_launch.run_holder import this_process
from ultramem_launch.run_lock import refuse_held
from ultramem_launch.slurm import client
from ultramem_launch.slurm.array import read_sweep
from ultramem_launch.slurm.folder import JobFolder
from ultramem_launch.slurm.progress import is_active
from ultramem_launch.slurm.request import JobRequest, check_run_dir
from ultramem_launch.slurm.script import Place, render_script
from ultramem_launch.slurm.site import Site
from ultramem_launch.slurm.snapshot import code_paths, copy_code, plan_for, save_snapshot
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import LaunchError
from ultramem_megatron.files import check_folder, failures_named, write_text
from ultramem_megatron.planning.plan import Plan

EXECUTABLE = stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of the job: the only one, or a task of an array."""

    run_dir: Path
    config: RunConfig
    plan: Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """Everything checked, nothing written yet."""

    home: Path
    runs: Sequence[Run]
    request: JobRequest
    site: Site
    copies_code: bool

    @property
    def script(self) -> str:
        """The text of the batch script."""
        code = [JobFolder(self.home).code] if self.copies_code else code_paths()
        return render_script(self.request, self.site, self._place(code))

    def _place(self, code: Sequence[Path]) -> Place:
        return Place(
            run_dirs=[run.run_dir for run in self.runs],
            home=self.home,
            work_dir=Path.cwd(),
            python=sys.executable,
            python_path=code,
        )


def prepare(
    config: str,
    overrides: Sequence[str],
    run_dir: Path,
    request: JobRequest,
    site: Site,
    *,
    sweep: Path | None,
    copies_code: bool,
) -> Submission:
    """Load, check and plan; writes nothing.

    Raises:
        UltraMemError: Something of it cannot be.
    """
    home = check_run_dir(run_dir)
    if home.exists() and not home.is_dir():
        raise LaunchError(f"--run-dir {run_dir} is a file; name a folder, it is made when missing")
    settings = {home: load_config(config, overrides)}
    if sweep is not None:
        if request.chain > 1:
            raise LaunchError(f"--chain {request.chain} and --array {sweep} exclude each other; leave one out")
        settings = {home / name: load_config(config, [*overrides, *more]) for name, more in read_sweep(sweep).items()}
    runs = [Run(run_dir=path, config=one, plan=plan_for(one, request, site)) for path, one in settings.items()]
    return Submission(home=home, runs=runs, request=request, site=site, copies_code=copies_code)


def submit(submission: Submission) -> list[str]:
    """Write the run folders and submit.

    Returns:
        Job ids: one, or those of a chain.

    Raises:
        LaunchError: A job of this run folder is in the queue already, somebody trains in it, or sbatch refuses.
        FileError: It cannot be written.
    """
    folder = JobFolder(submission.home)
    for run in submission.runs:
        _refuse_second_job(JobFolder(run.run_dir))
        refuse_held(run.run_dir, this_process())
    for run in submission.runs:
        check_folder(run.run_dir)
        check_folder(JobFolder(run.run_dir).job)
    for run in submission.runs:
        save_snapshot(run.run_dir, run.config, run.plan, submission.request, submission.site)
    folder.logs.mkdir(parents=True, exist_ok=True)
    if submission.copies_code:
        with failures_named(folder.code):
            copy_code(folder)
    write_text(folder.script, submission.script)
    folder.script.chmod(EXECUTABLE)
    jobs: list[str] = []
    for _ in range(submission.request.chain):
        jobs.append(client.submit(folder.script, dependency=f"afterany:{jobs[-1]}" if jobs else ""))
        for task, run in enumerate(submission.runs):
            JobFolder(run.run_dir).add_submission(jobs[-1], task if len(submission.runs) > 1 else None)
    return jobs


def _refuse_second_job(folder: JobFolder) -> None:
    if not folder.submissions.is_file():
        return
    for job in folder.job_ids():
        state = client.find_state(job)
        if is_active(state.state):
            why = f" ({state.reason})" if state.reason else ""
            raise LaunchError(
                f"--run-dir {folder.run_dir}: job {job} of this run is {state.state}{why}, and two jobs would write "
                f"into one folder; `ultramem cancel --run-dir {folder.run_dir}` first, or name another folder"
            )

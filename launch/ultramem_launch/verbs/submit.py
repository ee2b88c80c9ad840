"""``ultramem submit``: a pretraining job on Slurm, from one config."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ultramem_launch.slurm.submission import Submission

Text = Annotated[str, typer.Option(metavar="TEXT", help="As of sbatch.")]


def submit(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Name of a recipe, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
    ] = None,
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Folder of the run, which all nodes must see.")] = ...,  # type: ignore[assignment]
    nodes: Annotated[str, typer.Option(metavar="N|MIN-MAX", help="Nodes; of a range as many as can be had.")] = "1",
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="GPUs and ranks of a node; 8 if not said.")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks of a node without GPUs.")] = None,
    cpus_per_task: Annotated[int, typer.Option(help="CPUs of a rank.")] = 1,
    time: Annotated[str, typer.Option(metavar="LIMIT", help="Time limit: minutes, H:M:S or D-H:M:S.")] = "",
    stop_before: Annotated[int, typer.Option(metavar="SECONDS", help="Save so long before the limit.")] = 300,
    max_restarts: Annotated[int, typer.Option(help="Starts in a row without progress before it gives up.")] = 3,
    chain: Annotated[int, typer.Option(metavar="K", help="K jobs, one after the other, instead of requeueing.")] = 1,
    array: Annotated[Path | None, typer.Option(metavar="SWEEP.YAML", help="A job array: one run each.")] = None,
    name: Annotated[str, typer.Option(help="Job name; the config's name if not said.")] = "",
    account: Text = "",
    partition: Text = "",
    qos: Text = "",
    reservation: Text = "",
    constraint: Text = "",
    exclude: Text = "",
    sbatch: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any other option of sbatch.")] = None,
    container_image: Annotated[str, typer.Option(help="Run the ranks in it (needs pyxis).")] = "",
    site: Annotated[
        Path | None, typer.Option(help="Site file; else $ULTRAMEM_SITE, ~/.config/ultramem/site.yaml.")
    ] = None,
    preflight: Annotated[str, typer.Option(help="Checks before the run: all, nodes (no all-reduce) or none.")] = "all",
    copy_code: Annotated[bool, typer.Option("--copy-code", help="Run a copy of the code as it is now.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script; write and submit nothing.")] = False,
    test_only: Annotated[
        bool, typer.Option("--test-only", help="Ask Slurm when it would start; submit nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Job ids and paths as a JSON object.")] = False,
) -> None:
    """Submit a pretraining job to Slurm. It plans for the nodes, fixes config and plan in the run folder, saves before
    its time limit, and starts again by itself where that helps.

    Exit status: 0 submitted, 2 refused, with the reason. That of the job, which starts again after 1, 75, 80, 83, 84
    and 85 as long as it gets further: 0 finished, 1 failed, 2 bad_input, 75 preempted, 80 hung, 81 diverged,
    82 out_of_disk, 83 bad_node, 84 node_lost, 85 not_met, 130 interrupted. RUN_DIR/status.json says why;
    launch/README.md says what to do.

    Example: ultramem submit quickstart --nodes 2 --tasks-per-node 2 --run-dir runs/first
    """
    from ultramem_launch.slurm import client
    from ultramem_launch.slurm.request import JobRequest, parse_sbatch_options, ranks_of_node
    from ultramem_launch.slurm.site import find_site_file, load_site
    from ultramem_launch.slurm.submission import prepare
    from ultramem_launch.slurm.submission import submit as submit_job

    gpus, tasks = ranks_of_node(gpus_per_node, tasks_per_node)
    named = {
        "account": account,
        "partition": partition,
        "qos": qos,
        "reservation": reservation,
        "constraint": constraint,
        "exclude": exclude,
    }
    request = JobRequest(
        name=name or Path(config).stem,
        nodes=nodes,
        gpus_per_node=gpus,
        tasks_per_node=tasks,
        cpus_per_task=cpus_per_task,
        time=time,
        stop_before_seconds=stop_before,
        max_restarts=max_restarts,
        chain=chain,
        preflight=preflight,
        sbatch={key: value for key, value in named.items() if value} | parse_sbatch_options(sbatch or []),
        container_image=container_image,
    )
    submission = prepare(
        config, overrides or [], run_dir, request, load_site(find_site_file(site)), sweep=array, copies_code=copy_code
    )
    if dry_run:
        typer.echo(submission.script, nl=False)
    elif test_only:
        typer.echo(client.try_submission(submission.script))
    else:
        _report(submission, submit_job(submission), as_json)


def _report(submission: "Submission", jobs: list[str], as_json: bool) -> None:
    from ultramem_launch.slurm.folder import JobFolder

    folder = JobFolder(submission.home)
    if as_json:
        runs = [str(run.run_dir) for run in submission.runs]
        typer.echo(json.dumps({"jobs": jobs, "runs": runs, "script": str(folder.script), "logs": str(folder.logs)}))
        return
    first = submission.runs[0]
    chosen = first.plan.chosen
    typer.echo(
        f"submitted job {', then '.join(jobs)}\n"
        f"  memory tables  {chosen.label if chosen else 'none'}, over {first.plan.world_size} ranks\n"
        f"  script         {folder.script}\n"
        f"  logs           {folder.logs}"
    )
    for run in submission.runs:
        typer.echo(
            f"  follow         ultramem status --run-dir {run.run_dir} --watch\n"
            f"                 ultramem logs --run-dir {run.run_dir} --follow\n"
            f"  TensorBoard    ultramem monitor --run-dir {run.run_dir}"
        )

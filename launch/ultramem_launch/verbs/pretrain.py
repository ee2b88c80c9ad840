"""``ultramem pretrain``: train, on one process, on N of this machine, or as a rank of torchrun."""

import functools
import signal
import sys
from pathlib import Path

import typer

from ultramem_launch import exit_codes
from ultramem_launch.configs import load_config


def pretrain(
    config: str = typer.Argument(..., help="A recipe's name or the path of a YAML file."),
    overrides: list[str] = typer.Argument(None, metavar="[KEY=VALUE]...", help="Settings, such as training.steps=500."),
    run_dir: Path = typer.Option(..., "--run-dir", help="Folder of the run; a run found there is resumed."),
    plan: Path = typer.Option(None, "--plan", metavar="FILE", help="Obey this plan of `ultramem plan --save`."),
    cluster: str = typer.Option(
        None, "--cluster", metavar="PROFILE", help="How fast the machines are, when planning: a name or a file."
    ),
    local: int = typer.Option(0, "--local", metavar="N", min=0, help="Start N processes on this machine."),
) -> None:
    """Train a model; start the same command again to resume.

    Ctrl-C saves and ends; a second one leaves at once. One start at a time trains in a folder.

    Exit status: 0 finished, 1 failed, 2 bad_input, 75 preempted (saved and ended early on Ctrl-C, SIGTERM or SIGUSR1),
    80 hung, 81 diverged, 82 out_of_disk, 85 not_met (the ranks), 130 interrupted, 128 + n killed by signal n (--local).
    RUN_DIR/status.json says why; launch/README.md says what to do.

    Example: ultramem pretrain quickstart training.steps=500 --run-dir runs/first --local 4
    """
    from ultramem_launch.place import is_one_of_several, refuse_nested_launch
    from ultramem_launch.pretrain import check_run, run_rank

    if local:
        refuse_nested_launch(local)
    settings = load_config(config, overrides or [])
    if is_one_of_several() or not local:
        sys.exit(run_rank(settings, run_dir, plan_file=plan, profile=cluster))
    check_run(settings, run_dir, local)
    options = ["--run-dir", str(run_dir)]
    options += ["--plan", str(plan)] if plan else []
    options += ["--cluster", cluster] if cluster else []
    sys.exit(_run_here(local, ["pretrain", config, *(overrides or []), *options], run_dir))


def _run_here(processes: int, arguments: list[str], run_dir: Path) -> int:
    """The ranks of this machine. Returns the exit status, which is that in the status file."""
    from ultramem_launch.ending import settle
    from ultramem_launch.local import run_local_processes, ultramem
    from ultramem_launch.pretrain import RANK_IMPORTS
    from ultramem_launch.run_folder import held_by_launcher
    from ultramem_launch.run_holder import LAUNCH, for_local_ranks, this_process
    from ultramem_megatron.checkpoint.disk import full_disk_named

    mine = for_local_ranks(this_process())
    with full_disk_named(run_dir), held_by_launcher(run_dir, mine):
        typer.echo(f"{processes} {'process' if processes == 1 else 'processes'} on this machine")
        status = run_local_processes(
            processes,
            arguments,
            ultramem(RANK_IMPORTS),
            on_killed=functools.partial(_name_killed, run_dir),
            variables={LAUNCH: mine.token},
        )
        status = settle(run_dir, status)
    if status in (exit_codes.FINISHED, exit_codes.STOPPED):
        _say_where(run_dir, status)
    return status


def _name_killed(run_dir: Path, rank: int, number: int) -> None:
    """Said over what the other ranks took for the cause."""
    from ultramem_launch.ending import Ending, Outcome, read_ending, replace_ending

    said = read_ending(run_dir)
    if run_dir.is_dir() and (said is None or said.outcome is Outcome.FAILED):
        name = signal.Signals(number).name
        hint = " (often a lack of memory)" if number == signal.SIGKILL else ""
        reason = f"rank {rank} was killed by {name}{hint}"
        replace_ending(run_dir, Ending(outcome=Outcome.FAILED, reason=reason, killed_by=number))
        typer.echo(reason, err=True)


def _say_where(run_dir: Path, status: int) -> None:
    how = "finished" if status == exit_codes.FINISHED else "saved and stopped; the same command goes on"
    typer.echo(
        f"{how}\n"
        f"  checkpoints  {run_dir}/checkpoints\n"
        f"  metrics      {run_dir}/metrics.jsonl\n"
        f"  plan         {run_dir}/plan.json\n"
        f"  TensorBoard  ultramem monitor --run-dir {run_dir}\n"
        f"  text         ultramem generate --run-dir {run_dir} --prompt ..."
    )

"""The batch script's helper, on the first node of a job: ``python -m ultramem_launch.slurm.batch VERB``.

It imports no torch: with containers, the ranks' Python is another one. Exit statuses are for ``pretrain.sbatch``.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ultramem_launch.ending import (
    RULES,
    Ending,
    Outcome,
    attempt_of_this_process,
    clear_ending,
    read_ending,
    record_ending,
    replace_ending,
)
from ultramem_launch.run_holder import this_process
from ultramem_launch.run_lock import RunHeldError, release, take
from ultramem_launch.slurm.attempts import SUSPECT_AFTER, Attempt, close, decide, judge, may_have_lost_nodes
from ultramem_launch.slurm.folder import JobFolder
from ultramem_launch.slurm.killed import find_killed
from ultramem_launch.slurm.nodes import bad_nodes, read_facts, read_speeds, slow_nodes, write_token
from ultramem_launch.slurm.reserve import is_full, keep_reserve
from ultramem_megatron.checkpoint.disk import names_full_disk
from ultramem_megatron.checkpoint.set_aside import describe_mark, set_aside
from ultramem_megatron.errors import UltraMemError, one_paragraph
from ultramem_megatron.files import remove_leftovers, write_json, write_text

NOTHING_LEFT = 10
START_AGAIN = 100
PROBE_SECONDS = 60
LAST_WORDS_SECONDS = 25.0
"""Slurm kills what has not ended 30 s after its SIGTERM (KillWait)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parse(arguments)
    folder, attempt = JobFolder(Path(options.run_dir)), attempt_of_this_process()
    try:
        match options.verb:
            case "begin":
                return begin_locked(folder, options.allocated, options.tasks_per_node, options.chain, os.getppid())
            case "passed":
                return passed(folder, options.nodes.split(), all_reduce=options.all_reduce)
            case _:
                requeue = options.requeue == "yes"
                if options.trained == "no" and options.asked != "none":
                    clear_ending(folder.run_dir)  # checks that a signal ended may have taken it for a fault
                    return end(folder, options.step_status, options.asked, [], options.max_restarts, requeue)
                if options.asked == "TERM":
                    wait_for_ranks(folder.run_dir, LAST_WORDS_SECONDS)
                lost = find_lost_nodes() if may_have_lost_nodes(read_ending(folder.run_dir)) else []
                return end(folder, options.step_status, options.asked, lost, options.max_restarts, requeue)
    except RunHeldError as error:  # the folder is another start's: not even this is written there
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except UltraMemError as error:
        if isinstance(error, OSError) and names_full_disk(str(error)):
            return _no_room(folder, error)
        print(one_paragraph(f"{type(error).__name__}: {error}"), file=sys.stderr)
        replace_ending(folder.run_dir, Ending(outcome=Outcome.BAD_INPUT, reason=str(error), attempt=attempt))
        return 2
    except OSError as error:
        if not names_full_disk(str(error)):
            raise
        return _no_room(folder, error)


def _no_room(folder: JobFolder, error: Exception) -> int:
    print(f"{Outcome.OUT_OF_DISK}: no room is left in {folder.run_dir}: {error}", file=sys.stderr)
    return RULES[Outcome.OUT_OF_DISK].exit_status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ultramem_launch.slurm.batch", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("begin", help="note the start; 10: there is nothing to do")
    one.add_argument("--allocated", type=int, required=True)
    one.add_argument("--tasks-per-node", type=int, required=True)
    one.add_argument("--chain", type=int, required=True)
    two = verbs.add_parser("passed", help="whether all nodes passed their checks")
    two.add_argument("--nodes", default="")
    two.add_argument("--all-reduce", action="store_true")
    three = verbs.add_parser("judge", help="note why it ended; 100: start again")
    three.add_argument("--step-status", type=int, required=True)
    three.add_argument("--asked", required=True)
    three.add_argument("--trained", choices=("yes", "no"), required=True, help="whether ranks were started on the run")
    three.add_argument("--max-restarts", type=int, required=True)
    three.add_argument("--requeue", choices=("yes", "no"), required=True)
    for verb in (one, two, three):
        verb.add_argument("--run-dir", required=True)
    return parser.parse_args(arguments)


def begin_locked(folder: JobFolder, allocated: int, tasks_per_node: int, chain: int, script: int) -> int:
    """``begin`` with the run in the hands of the job's script, which keeps it until ``end`` unless it has to stop here.

    Args:
        folder: Of the job.
        allocated: As for ``begin``.
        tasks_per_node: As for ``begin``.
        chain: As for ``begin``.
        script: Process of the job's script.

    Raises:
        RunHeldError: Another start holds the run; nothing was changed.
    """
    lock = take(folder.run_dir, this_process(pid=script))
    status = 2
    try:
        status = begin(folder, allocated, tasks_per_node, chain)
    finally:
        if status:
            lock.release()
    return status


def begin(folder: JobFolder, allocated: int, tasks_per_node: int, chain: int) -> int:
    """Note that the job starts, on how many nodes, and forget how it ended before."""
    attempt = attempt_of_this_process()
    before = [Attempt.from_dict(content) for content in folder.read_attempts()]
    if chain > 1 and before and before[-1].job != attempt.rpartition(".")[0]:
        last = read_ending(folder.run_dir)
        if last is not None and last.attempt == before[-1].name and not RULES[last.outcome].restarts:
            print(f"{last.outcome}: nothing for this job of the chain to do")
            return NOTHING_LEFT
    nodes = usable_nodes(folder.config, allocated, tasks_per_node)
    if before and before[-1].outcome is None:
        ending = silent_end(before[-1], attempt)
        before[-1] = close(before[-1], ending, folder.newest_step(), time.time())
    started = Attempt(name=attempt, nodes=nodes, first_step=folder.newest_step(), started=time.time())
    keep_reserve(folder.reserve)
    remove_leftovers(folder.run_dir)
    write_json(folder.attempts, [one.to_dict() for one in [*before, started]])
    write_text(folder.nodes, f"{nodes}\n")
    folder.exclude.unlink(missing_ok=True)
    clear_ending(folder.run_dir)
    write_token(folder.preflight(attempt))
    return 0


def silent_end(before: Attempt, attempt: str) -> Ending:
    """Why a start has no end of its own: its script was killed before it could judge."""
    if before.job == attempt.rpartition(".")[0]:
        reason = "Slurm started the job again before its script could say why, as it does when it loses a node"
        return Ending(outcome=Outcome.NODE_LOST, reason=reason, attempt=before.name)
    reason = "the job's script was killed before it could say why: by scancel, or at a time limit without a warning"
    return Ending(outcome=Outcome.FAILED, reason=reason, attempt=before.name)


def usable_nodes(config: Path, allocated: int, tasks_per_node: int) -> int:
    """The most of the allocated nodes over which batch and degrees of parallelism can be divided.

    Raises:
        ConfigError: None can; as for all of them.
    """
    from ultramem_megatron.config.load import load_run_config

    settings = load_run_config(config)
    for nodes in range(allocated, 0, -1):
        try:
            settings.check_world_size(nodes * tasks_per_node)
        except UltraMemError:
            continue
        return nodes
    settings.check_world_size(allocated * tasks_per_node)
    raise AssertionError("one of these refuses")


def passed(folder: JobFolder, nodes: Sequence[str], *, all_reduce: bool) -> int:
    """Name the nodes that did not pass; 0 when all did."""
    attempt = attempt_of_this_process()
    facts = folder.preflight(attempt)
    speeds = read_speeds(facts) if all_reduce else None
    if all_reduce and speeds is None:  # a rank may have said why
        reason = "the all-reduce before training did not end; the log of the ranks says where"
        record_ending(folder.run_dir, Ending(outcome=Outcome.NOT_MET, reason=reason, attempt=attempt))
        return 1
    bad = bad_nodes(nodes, read_facts(facts)) if speeds is None else slow_nodes(speeds)
    for node, words in bad.items():
        print(f"preflight: {node}: {words}")
    if not bad:
        print(f"preflight: all nodes passed{' the all-reduce' if all_reduce else ''}")
        return 0
    # if all are bad it is not the nodes' fault, and others would be no better
    outcome = Outcome.BAD_INPUT if set(bad) >= set(nodes) and not all_reduce else Outcome.BAD_NODE
    reason = "; ".join(f"{node}: {words}" for node, words in bad.items())
    replace_ending(folder.run_dir, Ending(outcome=outcome, reason=reason, attempt=attempt))
    write_text(folder.exclude, ",".join(bad))
    return 1


def end(
    folder: JobFolder, step_status: int, asked: str, lost_nodes: Sequence[str], max_restarts: int, requeue: bool
) -> int:
    """Note why the start ended and say what is next; ``START_AGAIN``, or the exit status of the job."""
    attempt = attempt_of_this_process()
    said, disk_is_full = read_ending(folder.run_dir), is_full(folder.job)
    folder.reserve.unlink(missing_ok=True)
    ending = judge(
        ending=said,
        step_status=step_status,
        asked=asked,
        lost_nodes=lost_nodes,
        attempt=attempt,
        killed=find_killed(folder.logs / f"{attempt}.log"),
        disk_is_full=disk_is_full,
    )
    attempts = [Attempt.from_dict(content) for content in folder.read_attempts()]
    if not attempts or attempts[-1].name != attempt:  # the list was damaged meanwhile
        attempts.append(Attempt(name=attempt, nodes=0, first_step=folder.newest_step(), started=time.time()))
    attempts[-1] = close(attempts[-1], ending, folder.newest_step(), time.time())
    write_json(folder.attempts, [one.to_dict() for one in attempts])
    if ending is not said:
        replace_ending(folder.run_dir, ending)
    if lost_nodes:
        write_text(folder.exclude, ",".join(lost_nodes))
    # a job of a chain starts once
    series = [one for one in attempts if one.job == attempts[-1].job] if requeue else attempts
    verdict = decide(ending, asked, series, max_restarts if requeue else None, folder.usable_steps())
    print(verdict.words, flush=True)
    if verdict.set_aside is not None and put_aside(folder.checkpoint(verdict.set_aside), attempts[-1]):
        attempts[-1] = replace(attempts[-1], set_aside=verdict.set_aside)
        write_json(folder.attempts, [one.to_dict() for one in attempts])
    release(folder.run_dir, f"job {attempt}")
    return START_AGAIN if verdict.restart and requeue else ending.exit_status


def put_aside(checkpoint: Path, last: Attempt) -> bool:
    """Mark it, and say how to take the mark away; False, with the reason, when it cannot be marked."""
    try:
        set_aside(checkpoint, f"{SUSPECT_AFTER} starts from it failed in a row, {last.name} last: {last.reason}")
    except OSError as error:
        print(f"checkpoint {checkpoint} cannot be set aside, so the next start uses it again: {error}", flush=True)
        return False
    print(describe_mark(checkpoint), flush=True)
    return True


def wait_for_ranks(run_dir: Path, seconds: float) -> None:
    """Return when a rank has said why it ends. SIGTERM ends srun at once, and the ranks save without it."""
    deadline = time.monotonic() + seconds
    while read_ending(run_dir) is None and time.monotonic() < deadline:
        time.sleep(0.1)


def find_lost_nodes() -> list[str]:
    """Nodes of this job that Slurm has given up, or on which no step starts any more.

    Once Slurm knows it ends the job, and then no step starts on any node; before, it takes minutes to know.
    """
    listed = _printed(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]).split()
    states = _printed(["sinfo", "--noheader", "-N", f"--nodes={','.join(listed)}", "--format=%N %T"])
    given_up = lost_by_state(states)
    job_state = _printed(["squeue", "--noheader", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%T"]).strip()
    if given_up or job_state != "RUNNING":
        return given_up
    with ThreadPoolExecutor(max_workers=32) as pool:
        answers = list(pool.map(_answers, listed))
    return [node for node, answered in zip(listed, answers, strict=True) if not answered]


def lost_by_state(states: str) -> list[str]:
    """Of lines ``NODE STATE`` those that are down, failing, or do not respond (``*``); each once."""
    rows = [line.split() for line in states.splitlines()]
    return list(
        dict.fromkeys(node for node, state in rows if state.endswith("*") or state.startswith(("down", "fail")))
    )


def _printed(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _answers(node: str) -> bool:
    step = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--quiet", "true"]
    try:
        return subprocess.run(step, capture_output=True, timeout=PROBE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if __name__ == "__main__":
    sys.exit(main())

"""One rank of a pretraining run: place, plan, training. The only file here that sees the training code."""

import functools
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ultramem_launch import ending
from ultramem_launch.ending import Ending, attempt_of_this_process, clear_ending, failures_recorded, record_ending
from ultramem_launch.place import find_place
from ultramem_megatron.errors import LaunchError, PlanError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import torch

    from ultramem_megatron.config.run import RunConfig
    from ultramem_megatron.parallel.process import ProcessPlace
    from ultramem_megatron.planning.cluster import ClusterSpec
    from ultramem_megatron.planning.plan import Plan


def check_run(config: "RunConfig", run_dir: Path, world_size: int) -> None:
    """What can be told before any process is started.

    Raises:
        UltraMemError: Config and number of ranks do not fit together, or ``run_dir`` is a file.
    """
    config.check_world_size(world_size)
    if run_dir.exists() and not run_dir.is_dir():
        raise LaunchError(f"--run-dir {run_dir} is a file; name a folder, it is made when missing")


def make_plan(config: "RunConfig", run_dir: Path, cluster: "ClusterSpec") -> "Plan":
    """The plan of the run: the one it has, if that still fits, else a new one. Writes nothing.

    Raises:
        UltraMemError: Config and number of ranks do not fit together, or no partition fits.
    """
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.plan import Plan, check_plan_matches

    check_run(config, run_dir, cluster.num_ranks)
    saved = run_dir / "plan.json"
    if saved.is_file():
        try:
            plan = Plan.load(saved)
            check_plan_matches(plan, config, cluster.num_ranks)
        except PlanError as error:
            # another layout than last time, perhaps; the checkpoint is free of it
            logger.warning("%s. This run plans anew", str(error).removesuffix("."))
        else:
            return plan
    return choose_plan(config, cluster)


def run_rank(config: "RunConfig", run_dir: Path) -> int:
    """Train as the rank that the launcher says this is.

    Why it ended is written to the run folder first (``ending.py``).

    Returns:
        The exit status.
    """
    place = find_place()
    if place.rank == 0 and not attempt_of_this_process():
        clear_ending(run_dir)
    with failures_recorded(run_dir, place.rank):
        return _run_rank(config, run_dir, place)


def _run_rank(config: "RunConfig", run_dir: Path, place: "ProcessPlace") -> int:
    check_run(config, run_dir, place.world_size)
    from ultramem_megatron.parallel.accelerators import refuse_wrong_apex
    from ultramem_megatron.parallel.process import start_process

    refuse_wrong_apex()
    device = start_process(place, timeout_seconds=config.parallelism.timeout_seconds)

    from ultramem_megatron.parallel.agree import on_first_rank
    from ultramem_megatron.parallel.groups import destroy_groups
    from ultramem_megatron.training.loop import Outcome
    from ultramem_megatron.training.pretrain import pretrain

    # one rank plans for all: machines may differ in the memory that they see
    plan = on_first_rank(lambda: make_plan(config, run_dir, _allocated(place, device)))
    if place.rank == 0:
        print(f"memory tables: {plan.chosen.label if plan.chosen else 'none'}; run folder {run_dir}", flush=True)
    end_hung = functools.partial(_end_hung, run_dir, place.rank)
    finished = pretrain(config, plan, run_dir, device, end_hung) is Outcome.FINISHED
    how = ending.Outcome.FINISHED if finished else ending.Outcome.PREEMPTED
    # the others leave once it is written: a launcher may end all ranks when the first one has left
    on_first_rank(lambda: record_ending(run_dir, Ending(outcome=how, rank=0, attempt=attempt_of_this_process())))
    destroy_groups()
    return ending.RULES[how].exit_status


def _end_hung(run_dir: Path, rank: int, reason: str) -> None:
    """At once and without clean-up, which would wait for the ranks that stand still."""
    how = ending.Outcome.HUNG
    if record_ending(run_dir, Ending(outcome=how, reason=reason, rank=rank, attempt=attempt_of_this_process())):
        print(f"{how}: {reason}", file=sys.stderr, flush=True)
    os._exit(ending.RULES[how].exit_status)


def _allocated(place: "ProcessPlace", device: "torch.device") -> "ClusterSpec":
    """The machines of this run, taken to be like this one: GPU memory, or a share of the host's."""
    from ultramem_megatron.planning.cluster import GPU_RESERVE_BYTES, ClusterSpec, local_cluster

    nodes = place.world_size // place.local_world_size
    if device.type == "cpu" and nodes == 1:
        return local_cluster(place.world_size)
    if device.type == "cpu":
        memory_bytes, reserve_bytes = local_cluster(place.local_world_size).memory_bytes, 0
    else:
        import torch

        memory_bytes = torch.cuda.get_device_properties(device).total_memory
        reserve_bytes = GPU_RESERVE_BYTES
    return ClusterSpec(
        name=f"allocation:{place.world_size}",
        nodes=nodes,
        gpus_per_node=place.local_world_size,
        memory_bytes=memory_bytes,
        reserve_bytes=reserve_bytes,
    )

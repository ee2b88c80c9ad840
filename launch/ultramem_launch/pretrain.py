"""One rank of a pretraining run: place, plan, training. The only file here that sees the training code."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ultramem_launch import ending
from ultramem_launch.ending import Ending, attempt_of_this_process, failures_recorded, record_ending
from ultramem_launch.leaving import signals_heard
from ultramem_launch.place import RENDEZVOUS, find_place
from ultramem_launch.run_folder import RunFolder, open_run_folder
from ultramem_megatron.errors import LaunchError, PlanError, RunFailure, one_paragraph

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import torch

    from ultramem_megatron.config.run import RunConfig
    from ultramem_megatron.parallel.process import ProcessPlace
    from ultramem_megatron.planning.cluster import ClusterSpec
    from ultramem_megatron.planning.fingerprint import Fingerprint
    from ultramem_megatron.planning.plan import Plan

RANK_IMPORTS = (
    "ultramem_megatron.measuring.fingerprint",
    "ultramem_megatron.parallel.mcore_repairs",
    "ultramem_megatron.planning.choose",
    "ultramem_megatron.training.pretrain",
)
"""What a rank imports; with it comes the rest."""


def check_run(config: "RunConfig", run_dir: Path, world_size: int) -> None:
    """What can be told before any process is started.

    Raises:
        UltraMemError: Config and number of ranks do not fit together, or ``run_dir`` is a file.
    """
    config.check_world_size(world_size)
    refuse_file(run_dir)


def refuse_file(run_dir: Path) -> None:
    """A run needs a folder.

    Raises:
        LaunchError: ``run_dir`` is a file.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise LaunchError(f"--run-dir {run_dir} is a file; name a folder, it is made when missing")


def make_plan(config: "RunConfig", run_dir: Path, cluster: "ClusterSpec", pinned: Path | None = None) -> "Plan":
    """The plan of the run: the pinned one, or the one it has, if that still fits, else a new one. Writes nothing.

    Raises:
        UltraMemError: Config and number of ranks do not fit together, no partition fits, or the pinned plan is not of
            this run.
    """
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.plan import Plan
    from ultramem_megatron.planning.plan_change import describe_change
    from ultramem_megatron.planning.plan_match import check_plan_matches

    check_run(config, run_dir, cluster.num_ranks)
    saved = run_dir / "plan.json"
    before = _saved_plan(saved) if saved.is_file() else None
    if pinned is not None:
        plan = Plan.load(pinned)
        try:
            check_plan_matches(plan, config, cluster.num_ranks)
        except PlanError as error:
            raise PlanError(f"--plan {pinned}: {error}") from None
    elif before is not None and _still_fits(before, config, cluster.num_ranks):
        return before
    else:
        plan = choose_plan(config, cluster, current=before)
    if before is not None and before.hash != plan.hash:
        logger.warning("%s", describe_change(before, plan))
    return plan


def _saved_plan(path: Path) -> "Plan | None":
    """The plan that the run had, unless an older version wrote it."""
    from ultramem_megatron.planning.plan import Plan

    try:
        return Plan.load(path)
    except PlanError as error:
        logger.warning("%s. This run plans anew", one_paragraph(str(error)).removesuffix("."))
        return None


def _still_fits(plan: "Plan", config: "RunConfig", world_size: int) -> bool:
    """Whether the run can go on under it; another layout than last time is no fault, checkpoints are free of it."""
    from ultramem_megatron.planning.plan_match import check_plan_matches

    try:
        check_plan_matches(plan, config, world_size)
    except PlanError as error:
        # the remedy in the error is for who pinned the plan; this run helps itself
        logger.warning("%s; this run plans anew", one_paragraph(str(error).partition("; plan again")[0]))
        return False
    return True


def run_rank(config: "RunConfig", run_dir: Path, *, plan_file: Path | None = None, profile: str | None = None) -> int:
    """Train as the rank that the launcher says this is.

    Why it ended is written to the run folder first (``ending.py``).

    Args:
        config: The run.
        run_dir: Its folder.
        plan_file: A plan to obey.
        profile: How fast the machines are, as ``--cluster`` of ``ultramem plan`` names it; the built-in profile that is
            nearest to the device unless told.

    Returns:
        The exit status.
    """
    place = find_place()
    from ultramem_megatron.checkpoint.disk import full_disk_named

    refuse_file(run_dir)
    with full_disk_named(run_dir):
        folder = open_run_folder(run_dir, place.rank)
        if place.world_size == 1:
            folder.tell()
    leave = functools.partial(_leave, folder)
    counts = RENDEZVOUS not in os.environ
    with (
        folder.kept(),
        failures_recorded(run_dir, place.rank, folder.may_write),
        full_disk_named(run_dir),
        signals_heard(place.rank, leave, counts_interrupts=counts) as training_begins,
    ):
        return _Rank(config, folder, place, training_begins).run(plan_file, profile)


@dataclass(frozen=True, slots=True)
class _Rank:
    config: "RunConfig"
    folder: RunFolder
    place: "ProcessPlace"
    training_begins: Callable[[], None]
    """To be called when signals have become requests."""

    def run(self, plan_file: Path | None, profile: str | None) -> int:
        """Returns the exit status."""
        device = self._meet()
        from ultramem_megatron.parallel.agree import on_first_rank
        from ultramem_megatron.parallel.groups import destroy_groups

        if self.place.rank == 0:
            warn_of_slow_precision(self.config, device)
        how, reason = self._train(device, plan_file, profile)
        ended = Ending(outcome=how, reason=reason, rank=0, attempt=attempt_of_this_process())
        # the others leave once it is written: a launcher may end all ranks when the first one has left
        on_first_rank(lambda: record_ending(self.folder.run_dir, ended))
        destroy_groups()
        return ended.exit_status

    def _meet(self) -> "torch.device":
        check_run(self.config, self.folder.run_dir, self.place.world_size)
        from ultramem_megatron.parallel.accelerators import refuse_wrong_apex
        from ultramem_megatron.parallel.agree import on_first_rank
        from ultramem_megatron.parallel.process import start_process

        refuse_wrong_apex()
        try:
            device = start_process(
                self.place,
                timeout_seconds=self.config.parallelism.timeout_seconds,
                deterministic=self.config.training.deterministic,
            )
        except RunFailure:
            self.folder.tell()  # a run that is refused, and its ranks did not meet, was refused
            raise
        on_first_rank(self.folder.tell)
        self.folder.told()
        return device

    def _train(self, device: "torch.device", plan_file: Path | None, profile: str | None) -> tuple[ending.Outcome, str]:
        """How it ended, and why."""
        from ultramem_megatron.measuring.fingerprint import fingerprint
        from ultramem_megatron.parallel.agree import on_first_rank
        from ultramem_megatron.training.loop import Outcome
        from ultramem_megatron.training.pretrain import pretrain
        from ultramem_megatron.training.stop import StopRequest

        config, run_dir, rank = self.config, self.folder.run_dir, self.place.rank
        # one rank plans for all: machines may differ in the memory that they see
        here = fingerprint(device)
        machines = _allocated(self.place, device, profile)
        plan = on_first_rank(lambda: _plan(config, run_dir, machines, plan_file, here))
        if rank == 0:
            print(f"memory tables: {plan.chosen.label if plan.chosen else 'none'}; run folder {run_dir}", flush=True)
        stop = StopRequest()
        stop.listen()
        self.training_begins()
        end_hung = functools.partial(_end_hung, run_dir, rank)
        if pretrain(config, plan, run_dir, device, end_hung, stop) is Outcome.FINISHED:
            return ending.Outcome.FINISHED, ""
        return ending.Outcome.PREEMPTED, f"asked to stop by {stop.cause}; saved, and the same command goes on"


def warn_of_slow_precision(config: "RunConfig", device: "torch.device") -> None:
    """Say so where the precision that was asked for is many times slower than the other."""
    from ultramem_megatron.config.training import Precision
    from ultramem_megatron.parallel.process import emulates_bf16

    if config.training.precision is Precision.BF16 and emulates_bf16(device):
        logger.warning(
            "training.precision = bf16 has no instructions on this CPU and takes some fifty times as long as fp32; "
            "training.precision=fp32 is faster here"
        )


def _leave(folder: RunFolder, ended: Ending) -> None:
    """At once and without clean-up; for a thread."""
    if folder.may_write() and record_ending(folder.run_dir, ended):
        print(f"{ended.outcome}: {ended.reason}", file=sys.stderr, flush=True)
    folder.release()
    os._exit(ended.exit_status)


def _end_hung(run_dir: Path, rank: int, reason: str) -> None:
    """At once and without clean-up, which would wait for the ranks that stand still."""
    how = ending.Outcome.HUNG
    if record_ending(run_dir, Ending(outcome=how, reason=reason, rank=rank, attempt=attempt_of_this_process())):
        print(f"{how}: {reason}", file=sys.stderr, flush=True)
    os._exit(ending.RULES[how].exit_status)


def _plan(
    config: "RunConfig", run_dir: Path, cluster: "ClusterSpec", plan_file: Path | None, here: "Fingerprint"
) -> "Plan":
    from ultramem_megatron.planning.staleness import stale_warning

    stale = stale_warning(cluster, here.flat())
    if stale:
        logger.warning("%s", stale)
    return make_plan(config, run_dir, cluster, plan_file)


def _allocated(place: "ProcessPlace", device: "torch.device", profile_name: str | None) -> "ClusterSpec":
    """The machines of this run, taken to be like this one: GPU memory, or a share of the host's."""
    from ultramem_megatron.planning.cluster import ClusterSpec, local_cluster, parse_cluster, profile_for_device

    nodes = place.world_size // place.local_world_size
    profile = parse_cluster(profile_name).profile if profile_name else None
    if device.type == "cpu":
        local = local_cluster(place.local_world_size, profile)
        memory_bytes, reserve_bytes, profile = local.memory_bytes, local.reserve_bytes, local.profile
    else:
        import torch

        properties = torch.cuda.get_device_properties(device)
        memory_bytes = properties.total_memory
        profile = profile or profile_for_device(properties.name, memory_bytes)
        reserve_bytes = profile.reserve_bytes
    return ClusterSpec(
        name=f"{profile_name.partition(':')[0] if profile_name else 'allocation'}:{place.world_size}",
        nodes=nodes,
        gpus_per_node=place.local_world_size,
        memory_bytes=memory_bytes,
        reserve_bytes=reserve_bytes,
        profile=profile,
    )

"""One rank of a pretraining run: place, plan, training. The only file here that sees the training code."""

from pathlib import Path
from typing import TYPE_CHECKING

from ultramem_launch import exit_codes
from ultramem_launch.place import find_place
from ultramem_megatron.errors import LaunchError, PlanError, UltraMemError

if TYPE_CHECKING:
    import torch

    from ultramem_megatron.config.run import RunConfig
    from ultramem_megatron.parallel.process import ProcessPlace
    from ultramem_megatron.planning.cluster import ClusterSpec
    from ultramem_megatron.planning.plan import Plan


def make_plan(config: "RunConfig", run_dir: Path, cluster: "ClusterSpec") -> "Plan":
    """The plan of the run: the one it has, if that still fits, else a new one. Writes nothing.

    Raises:
        UltraMemError: Config and number of ranks do not fit together, or no partition fits.
    """
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.plan import Plan, check_plan_matches

    config.check_world_size(cluster.num_ranks)
    if run_dir.exists() and not run_dir.is_dir():
        raise LaunchError(f"--run-dir {run_dir} is a file; name a folder, it is made when missing")
    saved = run_dir / "plan.json"
    if saved.is_file():
        try:
            plan = Plan.load(saved)
            check_plan_matches(plan, config, cluster.num_ranks)
        except PlanError:
            pass  # another layout than last time: plan anew, the checkpoint is free of it
        else:
            return plan
    return choose_plan(config, cluster)


def run_rank(config: "RunConfig", run_dir: Path) -> int:
    """Train as the rank that the launcher says this is.

    Returns:
        The exit status.
    """
    place = find_place()
    config.check_world_size(place.world_size)
    from ultramem_megatron.parallel.accelerators import refuse_wrong_apex
    from ultramem_megatron.parallel.process import start_process

    refuse_wrong_apex()
    device = start_process(place)
    plan = _agree_on_plan(config, run_dir, _allocated(place, device))

    from ultramem_megatron.parallel.groups import destroy_groups
    from ultramem_megatron.training.loop import Outcome
    from ultramem_megatron.training.pretrain import pretrain

    outcome = pretrain(config, plan, run_dir, device)
    destroy_groups()
    return exit_codes.FINISHED if outcome is Outcome.FINISHED else exit_codes.STOPPED


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


def _agree_on_plan(config: "RunConfig", run_dir: Path, cluster: "ClusterSpec") -> "Plan":
    """One rank plans for all: machines may differ in the memory that they see."""
    import torch.distributed as dist

    from ultramem_megatron.planning.plan import Plan

    answer: list[object] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [make_plan(config, run_dir, cluster)]
        except UltraMemError as error:
            answer = [error]
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], UltraMemError):
        raise answer[0]
    assert isinstance(answer[0], Plan)
    return answer[0]

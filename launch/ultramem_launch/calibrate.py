"""One rank of ``ultramem calibrate``: measure what is missing, fit, write the profile."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ultramem_launch.place import find_place
from ultramem_megatron.planning.profile import ClusterProfile

if TYPE_CHECKING:
    import torch

    from ultramem_launch.place import ProcessPlace
    from ultramem_megatron.planning.calibration.partial import Partial

RANK_IMPORTS = ("ultramem_megatron.measuring.calibration", "ultramem_megatron.measuring.fingerprint")
"""What a rank imports; with it comes the rest."""


def calibrate_rank(out: Path, name: str, base: str | None, *, quick: bool, max_error_fraction: float) -> None:
    """As the rank that the launcher says this is. Collective over the world; rank 0 writes.

    Raises:
        UltraMemError: A measurement that was begun cannot be continued, or the fit is bad; what was measured is kept.
    """
    import torch.distributed as dist

    from ultramem_megatron.files import check_can_write
    from ultramem_megatron.parallel.agree import on_first_rank
    from ultramem_megatron.parallel.process import choose_device, meet
    from ultramem_megatron.planning.calibration.fit import Machine, fit_profile
    from ultramem_megatron.planning.calibration.partial import partial_path
    from ultramem_megatron.planning.profile_file import save_profile

    place = find_place()
    device = choose_device(place)
    meet(place, device)
    on_first_rank(lambda: check_can_write(out))
    partial = _measure(place, device, out, quick)
    machine = Machine(name=name, ranks_per_node=place.local_world_size, memory_bytes=_memory_bytes(place, device))
    origin = _base(base, device)

    def fit_and_save() -> None:
        profile = fit_profile(
            partial.points, machine, partial.fingerprint, origin, max_error_fraction=max_error_fraction
        )
        save_profile(profile, out)
        partial_path(out).unlink()

    on_first_rank(fit_and_save)
    dist.barrier()
    dist.destroy_process_group()


def _measure(place: "ProcessPlace", device: "torch.device", out: Path, quick: bool) -> "Partial":
    from ultramem_megatron.measuring.calibration import Ranks, calibration_steps
    from ultramem_megatron.measuring.fingerprint import fingerprint
    from ultramem_megatron.parallel.agree import on_first_rank
    from ultramem_megatron.planning.calibration.partial import begin_or_continue, partial_path
    from ultramem_megatron.planning.calibration.schedule import make_schedule

    here, path = fingerprint(device), partial_path(out)
    partial = on_first_rank(lambda: begin_or_continue(path, here, quick))
    schedule = make_schedule(on_gpu=device.type == "cuda", quick=quick)
    ranks = Ranks(place.local_world_size, place.world_size // place.local_world_size)
    steps = list(calibration_steps(schedule, ranks, device))  # at once: each pass over them would make its own groups
    total, start, begun = len(steps), time.monotonic(), len(partial.steps)
    for step in steps:
        if step.name in partial.steps:
            continue
        partial = partial.with_step(step.name, step.run())
        if place.rank == 0:
            partial.save(path)
            done = len(partial.steps)
            left = (time.monotonic() - start) / (done - begun) * (total - done)
            print(f"{done}/{total} {step.name}; at most {left:.0f} s left", file=sys.stderr, flush=True)
    return partial


def _memory_bytes(place: "ProcessPlace", device: "torch.device") -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    from ultramem_megatron.planning.cluster import local_cluster

    return local_cluster(place.local_world_size).memory_bytes


def _base(name: str | None, device: "torch.device") -> ClusterProfile:
    """What is not measured comes from here: the profile named, or the built-in one that is nearest to the device."""
    from ultramem_megatron.planning.cluster import LOOPBACK, parse_cluster, profile_for_device

    if name is not None:
        return parse_cluster(name).profile
    if device.type == "cpu":
        return parse_cluster(LOOPBACK).profile
    import torch

    properties = torch.cuda.get_device_properties(device)
    return profile_for_device(properties.name, properties.total_memory)

"""All ranks meet and sum, first on each node, then all: ``python -m ultramem_launch.slurm.all_reduce_check``.

A run that cannot do this cannot start; here it fails in a minute, with numbers by node, not after its first timeout.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from ultramem_launch.ending import attempt_of_this_process, failures_recorded
from ultramem_launch.place import find_place
from ultramem_launch.slurm.folder import JobFolder
from ultramem_launch.slurm.needs import read_needs
from ultramem_launch.slurm.nodes import Speeds, save_speeds
from ultramem_megatron.errors import RunFailure, UltraMemError
from ultramem_megatron.parallel.process import ProcessPlace, start_process

MEET_SECONDS = 300.0
TIMES = 5
ELEMENTS = {"cuda": 64 * 2**20, "cpu": 2**20}
"""fp32 numbers: 256 MiB saturates NVLink and InfiniBand; 4 MiB is plenty for processes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    job = JobFolder(parser.parse_args().run_dir)
    place = find_place()
    with failures_recorded(job.run_dir, place.rank):
        check(job, place)


def check(job: JobFolder, place: ProcessPlace) -> None:
    """Meet, measure, and note what was found. Collective over the world.

    Raises:
        MeetingError: The ranks did not find each other.
    """
    device = start_process(place, timeout_seconds=MEET_SECONDS)
    expected = read_needs(job.job).all_reduce_bytes_per_second
    found = measure(os.environ.get("SLURMD_NODENAME", os.uname().nodename), device, expected)
    if dist.get_rank() == 0:
        save_speeds(job.preflight(attempt_of_this_process()), found)
        per_node = ", ".join(f"{node} {speed / 1e9:.2f}" for node, speed in found.node_bytes_per_second.items())
        print(f"all-reduce, GB/s: {per_node}; all ranks {found.all_bytes_per_second / 1e9:.2f}")
    dist.barrier()
    dist.destroy_process_group()


def measure(node: str, device: torch.device, expected_bytes_per_second: float) -> Speeds:
    """Bus bandwidth by node and of all ranks. Collective over the world."""
    named: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(named, node)
    on_node = {name: [rank for rank, other in enumerate(named) if other == name] for name in dict.fromkeys(named)}
    # every rank makes every group, in one order; all nodes sum at the same time
    groups = {name: dist.new_group(ranks) for name, ranks in on_node.items()}
    mine = all_reduce_speed(groups[node], device)
    each: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(each, mine)
    by_node = {name: each[ranks[0]] for name, ranks in on_node.items()}
    return Speeds(
        node_bytes_per_second=by_node,
        all_bytes_per_second=all_reduce_speed(dist.group.WORLD, device),
        expected_bytes_per_second=expected_bytes_per_second,
    )


def all_reduce_speed(group: dist.ProcessGroup | None, device: torch.device) -> float:
    """Bus bandwidth in bytes/s: bytes of the tensor times 2 (n - 1) / n over the seconds of one, the best of some.

    Raises:
        AssertionError: A sum is wrong, which only a fault of the machine can cause.
    """
    ranks = dist.get_world_size(group)
    summands = torch.ones(ELEMENTS[device.type], device=device)
    best = float("inf")
    for _ in range(TIMES):
        summed = summands.clone()
        _wait(device)
        begun = time.perf_counter()
        dist.all_reduce(summed, group=group)
        _wait(device)
        best = min(best, time.perf_counter() - begun)
        assert summed.min() == summed.max() == ranks, f"an all-reduce of ones over {ranks} ranks gave {summed.max()}"
    # one rank alone moves nothing over a bus: then this is how fast it reads its own memory
    return summands.numel() * summands.element_size() * max(1.0, 2 * (ranks - 1) / ranks) / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    try:
        main()
    except (RunFailure, UltraMemError) as error:
        sys.exit(f"{type(error).__name__}: {error}")

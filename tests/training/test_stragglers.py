"""Whole runs on forked ranks, one of which is made slow from outside: it is named, no other, and nobody before."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.monitor.records import read_records
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")

RANKS = 4
SLOW_RANK, SLOW_FROM = 2, 6
STEPS = 10
USUAL_SECONDS, SLOW_SECONDS, WAIT_SECONDS = 0.25, 1.0, 8.0
"""Powers of two, so that their sums and differences are exact."""


def train(run_dir: Path, ratio: float, steps: int) -> None:
    """A run on a clock made by hand, so that it does not matter what else the machine does.

    Each forward pass takes its time, that of one rank more after a while, and so does each wait for others.
    """
    from ultramem_megatron.parallel import work_meter
    from ultramem_megatron.training import forward_backward
    from ultramem_megatron.training.pretrain import pretrain

    forward, wait, passes, now = forward_backward._forward_step, dist.Work.wait, iter(range(1, 1000)), [0.0]

    def slowed(*arguments: Any) -> Any:
        is_slow = dist.get_rank() == SLOW_RANK and next(passes) >= SLOW_FROM
        now[0] += SLOW_SECONDS if is_slow else USUAL_SECONDS
        return forward(*arguments)

    def waited(*arguments: Any, **named: Any) -> Any:
        now[0] += WAIT_SECONDS
        return wait(*arguments, **named)

    # a fork: no other test sees them
    forward_backward._forward_step, dist.Work.wait = slowed, waited
    work_meter._HostClock.now = lambda _: now[0]  # type: ignore[method-assign]
    overrides = ("training.micro_batch_size=1", f"training.steps={steps}", "checkpoint.interval=1000")
    ranks = dist.get_world_size()
    config = tiny_config(*overrides, f"resilience.straggler_ratio={ratio}", f"training.global_batch_size={ranks}")
    pretrain(config, choose_plan(config, local_cluster(ranks)), run_dir, torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def _imported(megatron: ModuleType) -> None:
    for module in ("ultramem_megatron.training.pretrain", "torch.utils.tensorboard"):
        import_module(module)  # once, before the forks


@pytest.mark.slow
def test_the_slow_rank_is_named_and_no_other(tmp_path: Path) -> None:
    run_distributed(RANKS, train, tmp_path, 2.0, STEPS)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in events] == [("straggler", SLOW_FROM + 2)]
    assert f"rank {SLOW_RANK} on {import_module('socket').gethostname()} works " in events[0]["words"]
    assert ";" not in events[0]["words"], "one rank"

    reports = {r["step"]: r for r in read_records(tmp_path / "metrics.jsonl") if "throughput/slowest_rank" in r}
    assert sorted(reports) == list(range(2, STEPS + 1)), "not the first step"
    for step, report in reports.items():
        is_slow = step >= SLOW_FROM
        assert report["throughput/slowest_rank_seconds"] == (SLOW_SECONDS if is_slow else USUAL_SECONDS)
        assert report["throughput/slowest_rank_ratio"] == (SLOW_SECONDS / USUAL_SECONDS if is_slow else 1)
        assert report["throughput/slowest_rank"] == (SLOW_RANK if is_slow else 0), "of equals the first"


def test_off_means_off(tmp_path: Path) -> None:
    run_distributed(1, train, tmp_path, 0, 3)
    written = list(read_records(tmp_path / "metrics.jsonl"))
    assert len(written) == 3
    assert not any(name.startswith("throughput/slowest") for record in written for name in record)

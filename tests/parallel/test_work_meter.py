"""What counts as own work: that of the rank that comes late does, waiting for it does not, through whatever door."""

import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch.distributed import _coalescing_manager

from ultramem_megatron.parallel.work_meter import WorkMeter
from ultramem_megatron.testing.distributed import run_distributed

LATE_SECONDS, TRIES = 0.25, 3
CPU = torch.device("cpu")


def _async(x: torch.Tensor) -> None:
    dist.all_reduce(x, async_op=True).wait()


def _coalesced(x: torch.Tensor) -> None:
    with _coalescing_manager(dist.group.WORLD, async_ops=True) as under_way:
        dist.all_reduce(x)
    under_way.wait()


def _pipeline(x: torch.Tensor) -> None:
    ways = [dist.P2POp(dist.isend, x, 1 - dist.get_rank()), dist.P2POp(dist.irecv, x.clone(), 1 - dist.get_rank())]
    for work in dist.batch_isend_irecv(ways):
        work.wait()


DOORS: dict[str, Callable[[torch.Tensor], object]] = {
    "all_reduce": dist.all_reduce,
    "async": _async,
    "coalesced": _coalesced,
    "all_gather": lambda x: dist.all_gather_into_tensor(x.new_empty(2 * len(x)), x),
    "reduce_scatter": lambda x: dist.reduce_scatter_tensor(x.new_empty(len(x) // 2), x),
    "all_to_all": lambda x: dist.all_to_all_single(torch.empty_like(x), x),
    "pipeline": _pipeline,
    "barrier": lambda _: dist.barrier(),
}


def own_seconds() -> dict[str, float]:
    """Through each door the least of some tries: a busy machine only adds."""
    found = dict.fromkeys(DOORS, float("inf"))
    with WorkMeter(CPU) as meter:
        for name in [*DOORS] * TRIES:
            dist.barrier()
            meter.begin()
            if dist.get_rank() == 1:
                time.sleep(LATE_SECONDS)
            DOORS[name](torch.ones(4))
            found[name] = min(found[name], meter.end().own_seconds())
    return found


@pytest.mark.slow
def test_the_late_rank_has_worked_and_the_other_has_waited() -> None:
    punctual, late = run_distributed(2, own_seconds)
    for name in DOORS:
        assert late[name] >= LATE_SECONDS, name
        assert punctual[name] < late[name] / 2, name


def test_torch_is_left_as_it_was() -> None:
    before = dist.Work.wait
    with WorkMeter(CPU) as meter:
        meter.begin()
        assert dist.Work.wait is not before
        meter.begin()  # the first stretch was not ended: a step that failed
        meter.end()
        assert dist.Work.wait is before
        meter.begin()
    assert dist.Work.wait is before


def test_a_wait_that_fails_is_handed_on() -> None:
    def fail() -> None:
        with WorkMeter(CPU) as meter:
            meter.begin()
            with pytest.raises(RuntimeError):
                dist.irecv(torch.ones(1), 0, tag=1).wait()
            assert meter.end().own_seconds() >= 0

    run_distributed(1, fail)

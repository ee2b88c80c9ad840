"""``ultramem calibrate`` on one of its ranks: every step of the schedule, and the points that come of it."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ultramem_megatron.measuring.clock import Clock
from ultramem_megatron.measuring.collectives import (
    measure_collectives,
    own_subgroup,
    sent_bytes,
    share_elements,
)
from ultramem_megatron.measuring.kernels import (
    measure_new_memory,
    measure_overlap,
    measure_products,
    measure_rows,
    measure_small_operation,
    measure_sort,
    measure_stream,
)
from ultramem_megatron.planning.calibration.schedule import Schedule, group_sizes, is_held_out, network_bytes
from ultramem_megatron.planning.profile import FitPoint, Level

PRODUCT_ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
LEAST_SECONDS = 1e-9
"""Stands for no time at all, which a point cannot have."""


@dataclass(frozen=True, slots=True)
class Step:
    """A measurement that all ranks make together, seconds long."""

    name: str
    run: Callable[[], list[FitPoint]]


@dataclass(frozen=True, slots=True)
class Ranks:
    """How the ranks lie on the machines."""

    per_node: int
    nodes: int

    @property
    def world(self) -> int:
        """All of them."""
        return self.per_node * self.nodes


def calibration_steps(schedule: Schedule, ranks: Ranks, device: torch.device) -> Iterator[Step]:
    """All steps, kernels first. Collective over the world, as is each step.

    Yields:
        Steps in a fixed order; names tell them from each other.
    """
    clock = Clock(device)
    yield Step("stream", lambda: _stream(clock, schedule, ranks))
    yield Step("sort", lambda: [_point("sort", ranks.world, 0, measure_sort(clock, schedule))])
    yield Step("launch", lambda: [_point("launch", ranks.world, 0, measure_small_operation(clock, schedule))])
    for num_bytes in schedule.new_bytes:
        yield Step(
            f"new memory of {num_bytes} bytes", functools.partial(_new_memory, num_bytes, clock, schedule, ranks)
        )
    for width in schedule.row_bytes:
        yield Step(f"rows of {width} bytes", functools.partial(_rows, width, clock, schedule, ranks))
    for side in schedule.product_sides:
        yield Step(f"products of {side}", functools.partial(_products, side, clock, schedule, ranks))
    if ranks.world == 1:
        return
    yield Step("overlap", lambda: _overlap(clock, schedule, ranks))
    for size in group_sizes(ranks.per_node, ranks.nodes):
        group = own_subgroup(size)
        for num_bytes in schedule.message_bytes:
            yield Step(
                f"{num_bytes} bytes over {size} ranks",
                functools.partial(_collectives, num_bytes, group, clock, schedule, ranks, alone=False),
            )
        for num_bytes in schedule.alone_bytes if size < ranks.world else ():
            yield Step(
                f"{num_bytes} bytes over {size} ranks alone",
                functools.partial(_collectives, num_bytes, group, clock, schedule, ranks, alone=True),
            )


def _stream(clock: Clock, schedule: Schedule, ranks: Ranks) -> list[FitPoint]:
    return [_point("memory", ranks.world, 2 * schedule.batch_bytes, measure_stream(clock, schedule).median)]


def _new_memory(num_bytes: int, clock: Clock, schedule: Schedule, ranks: Ranks) -> list[FitPoint]:
    seconds = measure_new_memory(num_bytes, clock, schedule)
    return [_point("new_memory", ranks.world, num_bytes, max(LEAST_SECONDS, seconds))]


def _rows(width: int, clock: Clock, schedule: Schedule, ranks: Ranks) -> list[FitPoint]:
    held_out = is_held_out(schedule.row_bytes, width)
    found = measure_rows(width, clock, schedule)
    return [_point(path, ranks.world, width, seconds, held_out) for path, seconds in found.items()]


def _products(side: int, clock: Clock, schedule: Schedule, ranks: Ranks) -> list[FitPoint]:
    found = measure_products(side, clock, schedule)
    return [
        _point(f"gemm.{name}", ranks.world, 3 * side**2 * PRODUCT_ELEMENT_BYTES[name], seconds)
        for name, seconds in found.items()
    ]


def _overlap(clock: Clock, schedule: Schedule, ranks: Ranks) -> list[FitPoint]:
    world = dist.group.WORLD
    assert world is not None
    found = measure_overlap(schedule.product_sides[0], clock, schedule, world)
    return [_point(f"overlap.{name}", ranks.world, 0, seconds) for name, seconds in found.items()]


def _collectives(
    num_bytes: int, group: dist.ProcessGroup, clock: Clock, schedule: Schedule, ranks: Ranks, *, alone: bool
) -> list[FitPoint]:
    size = group.size()
    level = Level.NODE if size <= ranks.per_node else Level.NETWORK
    points = []
    for collective, measured in measure_collectives(num_bytes, group, clock, schedule, alone=alone).items():
        sent = sent_bytes(collective, share_elements(collective, num_bytes, size), size)
        counted = sent if level is Level.NODE else network_bytes(collective, sent, size, ranks.per_node)
        path = f"{level}.{collective}{'.alone' if alone else ''}"
        held_out = not alone and is_held_out(schedule.message_bytes, num_bytes)
        points.append(_point(path, size, counted, measured.median, held_out))
    return points


def _point(path: str, ranks: int, num_bytes: float, seconds: float, held_out: bool = False) -> FitPoint:
    return FitPoint(path=path, ranks=ranks, num_bytes=num_bytes, seconds=seconds, held_out=held_out)

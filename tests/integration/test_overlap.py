"""Lookups beside dense blocks give the bits of lookups that are waited for at once."""

import dataclasses
from types import ModuleType

import pytest
import torch

from ultramem_launch.configs import load_config
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.parallel.partition.registry import PARTITIONS
from ultramem_megatron.testing.budget import budget
from ultramem_megatron.testing.layouts import Layout

from .conftest import HASTE, train

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")

STEPS = budget(2, 4)
"""The second shows what the first did to the weights."""
SPLITS = [name for name in PARTITIONS if name not in (PartitionName.REPLICATED, PartitionName.GRID)]
"""A grid needs four ranks."""
PRE_VALUES = ("memory.variant=ultramem_v2", "memory.pre_value_dim=16", "memory.key_layout=query_per_rank")
DROPOUT = ("model.dropout=0.1", "memory.dropout=0.1")
SEQUENCE = ("parallelism.tensor=2", "parallelism.sequence=true")
CROSSING = ("parallelism.pipeline=2", "memory.spans=1:1/2:4")


def split(name: PartitionName, *settings: str, ranks: int = 2, processes: int = 2) -> Layout:
    pins = (f"memory.partition={name}", f"memory.parallel_size={ranks}")
    return Layout(" ".join((name, *settings)), processes, (*pins, *settings))


def overlap_config(*, overlap: bool) -> RunConfig:
    training = (f"training.stop_after={STEPS}", "training.micro_batch_size=1")
    config = load_config("parity", [*HASTE, *training, "memory.spans=1:3/4:4"])
    return dataclasses.replace(config, memory=dataclasses.replace(config.memory, overlap=overlap))


def assert_same_bits(layout: Layout) -> None:
    beside, at_once = (train(overlap_config(overlap=overlap), layout) for overlap in (True, False))
    assert len(beside.losses) == STEPS
    assert beside == at_once


@pytest.mark.parametrize("name", SPLITS)
def test_every_partition(megatron: ModuleType, name: PartitionName) -> None:
    # a grid of 2 nodes x 2 ranks is the smallest
    layout = split(name, "memory.node_size=2", ranks=4, processes=4) if name is PartitionName.GRID else split(name)
    assert_same_bits(layout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        split(PartitionName.GRID, "memory.node_size=2", *PRE_VALUES, ranks=4, processes=4),
        split(PartitionName.NUMBER_WISE, "training.recompute=full"),
        split(PartitionName.DIMENSION_WISE, "training.precision=bf16", *DROPOUT),
        split(PartitionName.NUMBER_WISE_POOLED, *PRE_VALUES),
        split(PartitionName.DIMENSION_WISE, *SEQUENCE, *DROPOUT),
        split(PartitionName.NUMBER_WISE, *CROSSING, processes=4),
        split(PartitionName.DIMENSION_WISE, *CROSSING, "parallelism.virtual_pipeline=2", *PRE_VALUES, processes=4),
    ],
    ids=lambda layout: layout.name,
)
def test_other_ways_to_run(megatron: ModuleType, layout: Layout) -> None:
    assert_same_bits(layout)

"""Configs and clusters that the tests of the planner share."""

from collections.abc import Callable

import pytest

from ultramem_megatron.config.load import parse_override, resolve
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.units import GIB

BASE = {
    "model": {"layers": 4, "hidden": 64, "ffn_hidden": 256, "heads": 4, "seq_length": 32, "vocab_size": 256},
    "memory": {
        "variant": "ultramem",
        "spans": "1:2/3:4",
        "keys_per_side": 32,
        "top_m": 4,
        "heads": 2,
        "key_dim": 16,
        "value_dim": 24,
    },
    "training": {"global_batch_size": 48, "micro_batch_size": 2, "precision": "fp32"},
}
MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config() -> MakeConfig:
    """Config with two small memory layers, changed by ``key=value`` overrides."""

    def make(*overrides: str) -> RunConfig:
        return resolve([("base", BASE), *map(parse_override, overrides)])

    return make


@pytest.fixture
def make_cluster() -> Callable[..., ClusterSpec]:
    """A cluster of some ranks, 1 GiB each unless told."""

    def make(num_ranks: int, memory_bytes: int = GIB) -> ClusterSpec:
        return ClusterSpec(name=f"test:{num_ranks}", nodes=1, gpus_per_node=num_ranks, memory_bytes=memory_bytes)

    return make

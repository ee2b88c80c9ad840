"""Local work of lookups: what is made beside what is sent."""

import pytest

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.planning.comm_cost import LookupShape
from ultramem_megatron.planning.kernel_time import kernel_parts
from ultramem_megatron.planning.lookup_time import lookup_time
from ultramem_megatron.planning.placement import GroupShape
from ultramem_megatron.planning.profile import ClusterProfile, NewMemory
from ultramem_megatron.planning.profile_file import built_in_profile
from ultramem_megatron.planning.time_part import Part, Pass, Phase

# 512 picks of 2 MiB rows in fp32: of so many rows that hardly one is picked twice
WIDE = LookupShape(tokens=64, picks=8, num_rows=10**9, value_dim=2**19, element_bytes=4)
MIB = 2.0**20


@pytest.fixture
def loopback() -> ClusterProfile:
    return built_in_profile("cpu-loopback")


def parts_of(profile: ClusterProfile, partition: PartitionName, shape: LookupShape = WIDE) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    for part in kernel_parts(profile, partition, shape, 4, 1, 1.0):
        found.setdefault(part.name, []).append(part)
    return found


def test_new_memory_costs_nothing_below_and_a_rate_above() -> None:
    new_memory = NewMemory(knots=((30.0, 0.0), (40.0, 2.0), (60.0, 4.0)))
    assert [new_memory.seconds(size) for size in (30, 35, 50, 120)] == [0.0, 1.0, 3.0, 8.0]


def test_rows_that_come_and_their_gradients_lie_in_new_memory(loopback: ClusterProfile) -> None:
    assert "touch_pages" not in parts_of(loopback, PartitionName.NUMBER_WISE)
    profile = loopback.model_copy(update={"new_memory": NewMemory(knots=((MIB, 0.0), (2 * MIB, 2.0)))})
    touched = parts_of(profile, PartitionName.NUMBER_WISE)["touch_pages"]
    assert [(part.which, part.phase) for part in touched] == [
        (Pass.FORWARD, Phase.LOOKUP),
        (Pass.BACKWARD, Phase.COMBINE),
    ]
    assert [part.seconds for part in touched] == pytest.approx([1024.0, 1024.0])
    assert "touch_pages" not in parts_of(profile, PartitionName.DIMENSION_WISE)


@pytest.mark.parametrize(("element_bytes", "bytes_a_column"), [(4, 4), (2, 4 + 4 + 2)])
def test_gradients_of_rows_are_made_in_fp32_and_cast(
    loopback: ClusterProfile, element_bytes: int, bytes_a_column: int
) -> None:
    shape = LookupShape(tokens=64, picks=8, num_rows=10**9, value_dim=64, element_bytes=element_bytes)
    (made,) = parts_of(loopback, PartitionName.NUMBER_WISE, shape)["make_row_gradients"]
    assert made.seconds * loopback.memory_bytes_per_second == pytest.approx(512 * 64 * bytes_a_column, rel=1e-3)


def test_partial_sums_are_added_at_home_and_fetched_back(loopback: ClusterProfile) -> None:
    found = parts_of(loopback, PartitionName.NUMBER_WISE_POOLED)
    home = [(p.which, p.name) for name in ("add_rows", "read_rows") for p in found[name] if p.phase is Phase.COMBINE]
    assert home == [(Pass.FORWARD, "add_rows"), (Pass.BACKWARD, "read_rows")]


def test_processes_that_share_cores_do_not_wait_for_the_busiest_owner(loopback: ClusterProfile) -> None:
    even, hot = (
        LookupShape(tokens=2**16, picks=32, num_rows=2**16, value_dim=64, element_bytes=4, zipf_exponent=skew)
        for skew in (0.0, 1.0)
    )

    def seconds(profile: ClusterProfile, shape: LookupShape) -> float:
        return lookup_time(profile, PartitionName.NUMBER_WISE_POOLED, shape, GroupShape(4, 4)).forward_seconds

    assert seconds(loopback, hot) == pytest.approx(seconds(loopback, even))
    gpu = built_in_profile("dgx-a100-80g")
    assert seconds(gpu, hot) > 1.05 * seconds(gpu, even)

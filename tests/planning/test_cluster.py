"""Cluster names, counts, and what a rank may use."""

import os

import pytest

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.cluster import ClusterSpec, local_cluster, parse_cluster
from ultramem_megatron.units import GIB


def test_a_dgx_name_gives_eight_ranks_a_node() -> None:
    cluster = parse_cluster("dgx-a100-40g:3")
    assert (cluster.nodes, cluster.gpus_per_node, cluster.num_ranks) == (3, 8, 24)
    assert cluster.memory_bytes == 40 * GIB
    assert cluster.usable_bytes == 36 * GIB
    assert parse_cluster("dgx-a100-80g:1").memory_bytes == 80 * GIB


def test_a_name_without_a_count_is_one() -> None:
    assert parse_cluster("dgx-a100-80g").name == "dgx-a100-80g:1"
    assert parse_cluster("local").num_ranks == 1


def test_local_ranks_share_the_memory_of_this_machine() -> None:
    physical_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cluster = parse_cluster("local:4")
    assert cluster == local_cluster(4)
    assert cluster.num_ranks == 4
    assert cluster.memory_bytes == physical_bytes // 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dgx-a100-80gb:2", 'unknown; the nearest is "dgx-a100-80g"'),
        ("dgx-h100:2", "known: local, dgx-a100-80g, dgx-a100-40g"),
        ("dgx-a100-80g:0", "has 0 nodes; a run needs at least 1, as in dgx-a100-80g:1"),
        ("local:0", "has 0 ranks"),
        ("local:", '"" is not a number; write local:N'),
        ("local:-2", '"-2" is not a number'),
        ("local:two", '"two" is not a number'),
    ],
)
def test_bad_names_are_refused_with_a_remedy(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_cluster(text)
    assert message in str(caught.value)


def test_a_spec_checks_itself() -> None:
    with pytest.raises(PlanError, match="0 nodes; a run needs at least 1"):
        ClusterSpec(name="mine", nodes=0, gpus_per_node=8, memory_bytes=GIB)
    with pytest.raises(PlanError, match=r"leaves no memory to a rank: 1.00 GiB, of which 2.00 GiB"):
        ClusterSpec(name="mine", nodes=1, gpus_per_node=8, memory_bytes=GIB, reserve_bytes=2 * GIB)
    with pytest.raises(PlanError, match="has 0 ranks per node"):
        local_cluster(0)

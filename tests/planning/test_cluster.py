"""Cluster names, counts, and what a rank may use."""

import os
from pathlib import Path

import pytest

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.cluster import ClusterSpec, local_cluster, parse_cluster, profile_for_device
from ultramem_megatron.planning.profile_file import built_in_profile, save_profile
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
        ("dgx-h100:2", 'the nearest is "hgx-h100" (known: local, dgx-a100-80g, dgx-a100-40g, hgx-h100, hgx-h200'),
        ("nowhere.json:2", "cluster profile nowhere.json cannot be read"),
        ("dgx-a100-80g:0", "has 0 nodes; a run needs at least 1, as in dgx-a100-80g:1"),
        ("local:0", "has 0 ranks"),
        ("local:", '"" is not a number; write local:N'),
        ("local:-2", '"-2" is not a number'),
        ("local:two", '"two" is not a number'),
        ("local:\uff12", "is not a number"),
        ("local:" + "9" * 5000, "has more than 100000 ranks; name fewer, as in local:4"),
        ("n" * 50_000, "is unknown; the nearest is"),
        ("n" * 300 + ".json", "cannot be read"),
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


def test_a_built_in_name_brings_its_profile() -> None:
    assert parse_cluster("hgx-h100:2").profile == built_in_profile("hgx-h100")
    assert parse_cluster("local:3").profile == parse_cluster("cpu-loopback:3").profile


def test_a_profile_is_named_by_its_path(tmp_path: Path) -> None:
    mine = built_in_profile("dgx-a100-40g").model_copy(update={"name": "our-cluster", "ranks_per_node": 4})
    save_profile(mine, tmp_path / "mine.json")
    cluster = parse_cluster(f"{tmp_path / 'mine.json'}:3")
    assert (cluster.name, cluster.num_ranks, cluster.profile) == ("our-cluster:3", 12, mine)
    assert parse_cluster(str(tmp_path / "mine.json")).nodes == 1


def test_a_cpu_profile_counts_processes(tmp_path: Path) -> None:
    mine = built_in_profile("cpu-loopback").model_copy(update={"name": "here"})
    save_profile(mine, tmp_path / "here.json")
    assert parse_cluster(f"{tmp_path / 'here.json'}:8").num_ranks == 8
    assert parse_cluster(str(tmp_path / "here.json")).num_ranks == mine.ranks_per_node


def test_the_slurm_allocation_gives_the_nodes() -> None:
    cluster = parse_cluster("dgx-a100-80g:slurm", {"SLURM_JOB_NUM_NODES": "16"})
    assert (cluster.name, cluster.nodes, cluster.gpus_per_node) == ("dgx-a100-80g:16", 16, 8)
    tasks = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_GPUS_ON_NODE": "8"}
    assert parse_cluster("dgx-a100-80g:slurm", tasks).num_ranks == 8
    torchrun = {**tasks, "SLURM_NTASKS_PER_NODE": "1"}
    assert parse_cluster("dgx-a100-80g:slurm", torchrun).num_ranks == 16
    for environment, message in (
        ({}, "this is no Slurm job, SLURM_JOB_NUM_NODES is not set; run it inside an allocation"),
        ({"SLURM_JOB_NUM_NODES": "many"}, 'SLURM_JOB_NUM_NODES = "many" is not a number'),
        ({"SLURM_JOB_NUM_NODES": "0"}, "has 0 nodes; a run needs at least 1"),
    ):
        with pytest.raises(PlanError) as caught:
            parse_cluster("dgx-a100-80g:slurm", environment)
        assert message in str(caught.value)


def test_a_gpu_finds_the_profile_of_its_kind() -> None:
    for device, gib, name in (
        ("NVIDIA A100-SXM4-80GB", 79, "dgx-a100-80g"),
        ("NVIDIA A100-SXM4-40GB", 39, "dgx-a100-40g"),
        ("NVIDIA H100 80GB HBM3", 79, "hgx-h100"),
        ("NVIDIA H200", 139, "hgx-h200"),
    ):
        assert profile_for_device(device, gib * GIB).name == name

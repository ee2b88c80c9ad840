"""Which nodes are not fit for a run, by name and reason."""

from dataclasses import replace
from pathlib import Path

import pytest

from ultramem_launch.slurm.nodes import (
    Gpu,
    NodeFacts,
    Speeds,
    bad_nodes,
    inspect_node,
    parse_gpus,
    read_facts,
    read_speeds,
    save_facts,
    save_speeds,
    slow_nodes,
    write_token,
)

GPU = Gpu(index=0, name="NVIDIA A100-SXM4-80GB", driver="550.54", uncorrected_errors=0, memory_mib=81920)
GOOD = NodeFacts(
    node="n1",
    token="7.0",
    free_bytes=2**31,
    needed_bytes=2**30,
    gpus=[GPU, replace(GPU, index=1)],
    needed_gpus=2,
    versions={"python": "3.11.7", "torch": "2.13.0"},
)


def named(*facts: NodeFacts) -> dict[str, NodeFacts]:
    return {f"n{index + 1}": replace(one, node=f"n{index + 1}") for index, one in enumerate(facts)}


def test_good_nodes_pass() -> None:
    assert bad_nodes(["n1", "n2", "n3"], named(GOOD, GOOD, GOOD)) == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token": ""}, "its run folder is not the one of the first node"),
        ({"free_bytes": 2**29}, "0.5 GiB free of 1.0 GiB needed"),
        ({"gpus": [GPU]}, "1 of 2 GPUs"),
        ({"gpus": [GPU, replace(GPU, index=3, uncorrected_errors=5)]}, "GPU 3 has 5 memory errors that ECC could not"),
        ({"gpus": [GPU, replace(GPU, index=1, uncorrected_errors=None)]}, ""),
        ({"versions": {"python": "3.11.7", "torch": "2.12.0"}}, "torch 2.12.0, elsewhere 2.13.0"),
    ],
)
def test_a_bad_node_is_named(changes: dict[str, object], reason: str) -> None:
    found = bad_nodes(["n1", "n2", "n3"], named(GOOD, replace(GOOD, **changes), GOOD))  # type: ignore[arg-type]
    assert set(found) == ({"n2"} if reason else set())
    assert reason in found.get("n2", "")


def test_a_node_that_did_not_answer_is_named() -> None:
    assert bad_nodes(["n1", "n2"], named(GOOD)) == {"n2": "did not answer, or does not see the run folder"}


def test_what_a_node_finds_of_itself_reaches_the_first_one(tmp_path: Path) -> None:
    folder = tmp_path / "7.0"
    write_token(folder)
    facts = inspect_node("n2", folder, needed_gpus=0, needed_bytes=1)
    save_facts(folder, facts)
    assert read_facts(folder) == {"n2": facts}
    assert (facts.token, facts.gpus) == ("7.0", [])
    assert facts.free_bytes > 1
    assert facts.versions["torch"].startswith("2.")


def test_the_table_of_nvidia_smi() -> None:
    table = "0, NVIDIA A100-SXM4-80GB, 550.54, 0, 81920\n1, NVIDIA H200, 550.54, [N/A], 143771\n"
    assert parse_gpus(table) == [
        GPU,
        Gpu(index=1, name="NVIDIA H200", driver="550.54", uncorrected_errors=None, memory_mib=143771),
    ]


@pytest.mark.parametrize(
    ("speeds", "expected", "slow"),
    [
        ({"a": 10e9, "b": 9e9, "c": 2e9}, 0.0, {"c": "all-reduce at 2.00 GB/s, 9.00 of the median node"}),
        ({"a": 10e9, "b": 9e9, "c": 8e9}, 0.0, {}),
        ({"a": 10e9, "b": 2e9}, 0.0, {}),
        ({"a": 10e9, "b": 9e9}, 200e9, {"a", "b"}),
        ({"a": 150e9, "b": 139e9}, 200e9, {"b": "all-reduce at 139.00 GB/s, 200.00 that the site expects"}),
    ],
)
def test_slow_nodes(tmp_path: Path, speeds: dict[str, float], expected: float, slow: object) -> None:
    found = Speeds(node_bytes_per_second=speeds, all_bytes_per_second=1e9, expected_bytes_per_second=expected)
    save_speeds(tmp_path, found)
    assert read_speeds(tmp_path) == found
    assert slow_nodes(found) == slow if isinstance(slow, dict) else set(slow_nodes(found)) == slow


def test_an_all_reduce_without_an_end_has_no_speeds(tmp_path: Path) -> None:
    assert read_speeds(tmp_path) is None

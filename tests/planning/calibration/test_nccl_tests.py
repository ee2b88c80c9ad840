"""The text that nccl-tests print, read as points."""

from pathlib import Path

import pytest

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.calibration.nccl_tests import read_nccl_tests

HEAD = "# nThread 1 nGpus 1 minBytes 8 maxBytes 33554432 step: 2(factor)\n#\n# Using devices\n"
TABLE = """#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
           0             0     float    none      -1    12.00    0.00    0.00      0    12.00    0.00    0.00      0
     1048576         32768     float    none      -1    100.0   10.49    9.18      0    90.00   11.65   10.19      0
     2097152         65536     float    none      -1    150.5   13.93   12.19      0    140.0   14.98   13.11      0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 10.0
"""


def ranks(count: int, hosts: int) -> str:
    lines = [
        f"#  Rank {r:2} Group  0 Pid {r + 100} on  node{r * hosts // count} device  {r % 8} [0x07] NVIDIA A100"
        for r in range(count)
    ]
    return "\n".join(lines) + "\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_node_counts_what_a_rank_sends(tmp_path: Path) -> None:
    path = write(tmp_path, "run1.txt", "# Collective test starting: all_gather_perf\n" + HEAD + ranks(8, 1) + TABLE)
    first, second = read_nccl_tests(path)
    assert (first.path, first.ranks, first.held_out, second.held_out) == ("node.all_gather", 8, False, True)
    assert first.num_bytes == 1048576 * 7 / 8
    assert second.seconds == pytest.approx(150.5e-6)


@pytest.mark.parametrize(
    ("test", "sent_over_the_network"),
    [
        pytest.param("alltoall", 1048576 * 8 / 16, id="to the other node"),
        pytest.param("all_reduce", 2 * 1048576 * 15 / 16 / 8, id="rings, through 8 shares"),
    ],
)
def test_between_nodes_the_network_share_counts(tmp_path: Path, test: str, sent_over_the_network: float) -> None:
    first, _ = read_nccl_tests(write(tmp_path, f"{test}_2nodes.txt", HEAD + ranks(16, 2) + TABLE))
    assert first.path == {"alltoall": "network.all_to_all", "all_reduce": "network.all_reduce"}[test]
    assert first.num_bytes == sent_over_the_network


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        pytest.param("run.txt", HEAD + ranks(8, 1) + TABLE, "does not say which collective", id="which"),
        pytest.param("alltoall.txt", TABLE, "names 0 ranks", id="no head"),
        pytest.param("alltoall.txt", HEAD + ranks(8, 1), "no lines of sizes and times", id="no table"),
    ],
)
def test_what_lacks_is_said(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_nccl_tests(write(tmp_path, name, text))

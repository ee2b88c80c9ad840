"""What the dense blocks hide, and the critical path."""

from collections.abc import Callable

import pytest

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.cluster import ClusterSpec, parse_cluster
from ultramem_megatron.planning.lookup_time import LookupTime
from ultramem_megatron.planning.problem import pose
from ultramem_megatron.planning.step_time import DenseTime, Window, dense_time, exposed_seconds, step_time
from ultramem_megatron.planning.time_part import Part, Pass, Phase

MakeConfig = Callable[..., RunConfig]
MakeCluster = Callable[..., ClusterSpec]


def lookup(forward: float, backward: float) -> LookupTime:
    return LookupTime(
        (
            Part(Pass.FORWARD, Phase.LOOKUP, "gather", forward, "read_rows"),
            Part(Pass.BACKWARD, Phase.LOOKUP, "scatter", backward, "add_rows"),
        )
    )


def test_a_window_hides_its_share_of_each_pass() -> None:
    window = Window(0, forward_seconds=2.0, backward_seconds=4.0)
    assert exposed_seconds(lookup(1, 3), window, 1.0) == 0
    assert exposed_seconds(lookup(3, 3), window, 1.0) == 1
    assert exposed_seconds(lookup(3, 5), window, 0.5) == 2 + 3
    assert exposed_seconds(lookup(3, 5), window, 0.0) == 8


def test_the_slowest_stage_sets_the_pace() -> None:
    """4 micro-batches over 2 stages: 5 turns of the second stage, whose table is not hidden."""
    dense = DenseTime((3.0, 2.5), (Window(0, 1, 2), Window(1, 1, 2)), turns=5)
    found = step_time(dense, [lookup(1, 2), lookup(2, 3)], sync_seconds=0.5, overlap_fraction=1.0)
    assert found.step_seconds == 5 * (2.5 + 2) + 0.5
    assert found.exposed_seconds == 5 * (4.5 - 3) + 0.5
    assert found.busy_seconds == 5 * 5 + 0.5


def test_dense_time_by_hand(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    """4 blocks of 12 x 64^2 weights, 64 tokens; 4 micro-batches on 6 ranks; the first span covers one block."""
    cluster = make_cluster(6)
    problem = pose(make_config(), cluster)
    rate = cluster.profile.gemm.fp32_flops_per_second
    block = 64 * (2 * 12 * 64**2 + 2 * 32 * 64) / rate
    found = dense_time(problem.config, problem.workload, cluster.profile)
    assert found.turns == 4
    assert [w.forward_seconds for w in found.windows] == pytest.approx([block, block])
    assert [w.backward_seconds for w in found.windows] == pytest.approx([2 * block, 2 * block])
    assert found.stage_seconds[0] > 3 * 4 * block


def test_recomputing_lengthens_the_backward_window(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plain, again = (pose(make_config(f"training.recompute={r}"), make_cluster(6)).dense for r in ("none", "full"))
    assert again.windows[0].backward_seconds == pytest.approx(1.5 * plain.windows[0].backward_seconds)


def test_a_span_that_leaves_its_stage_hides_until_there(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    inside = pose(make_config("memory.spans=1:4"), make_cluster(4)).dense
    crossing = pose(make_config("memory.spans=1:4", "parallelism.pipeline=2"), make_cluster(4)).dense
    assert inside.windows[0].forward_seconds == pytest.approx(3 * crossing.windows[0].forward_seconds)


def test_overlap_can_be_switched_off(make_config: MakeConfig) -> None:
    cluster = parse_cluster("dgx-a100-80g:2")
    on, off = (
        pose(make_config("training.global_batch_size=64", f"memory.overlap={v}"), cluster) for v in ("true", "false")
    )
    assert (on.overlap_fraction, off.overlap_fraction) == (cluster.profile.overlap_fraction, 0)

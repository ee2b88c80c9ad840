"""Maps: their points, and that each is what a plan says."""

from collections.abc import Callable

import pytest

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import parse_cluster
from ultramem_megatron.planning.sweep import Axes, check_axes, sweep

MakeConfig = Callable[..., RunConfig]


def test_a_point_is_what_a_plan_says(make_config: MakeConfig) -> None:
    config, cluster = make_config("training.global_batch_size=64"), parse_cluster("dgx-a100-80g:2")
    (row,) = sweep(config, cluster, Axes(nodes=(2,)))
    plan = choose_plan(config, cluster)
    assert plan.chosen is not None
    assert (row.strategy, row.parallel_size) == (plan.chosen.partition, plan.chosen.parallel_size)
    assert (row.step_seconds, row.hbm_bytes) == (plan.chosen.step_seconds, plan.chosen.memory_bytes)
    assert row.strategy_by_bytes == plan.verdict_by_bytes
    assert (row.point.ranks, row.point.tokens) == (16, 64)


def test_every_combination_is_there_and_what_cannot_be_says_why(make_config: MakeConfig) -> None:
    axes = Axes(nodes=(1, 2), parallel_sizes=(3, 4), tokens=(32, 128), top_m=(2, 4), value_dim=(24, 48))
    rows = list(sweep(make_config(), parse_cluster("dgx-a100-80g"), axes))
    assert len(rows) == axes.size == 2**5
    for row in rows:
        if row.parallel_size:
            assert (row.parallel_size, row.reason) == (4, "")
            assert row.step_seconds > 0 < row.hbm_bytes
        else:
            assert "memory.parallel_size = 3 must divide" in row.reason
    assert {(r.point.tokens, r.point.top_m, r.point.value_dim) for r in rows if r.parallel_size} == {
        (tokens, top_m, width) for tokens in (32, 128) for top_m in (2, 4) for width in (24, 48)
    }
    assert list(rows[0].to_dict())[:6] == ["nodes", "ranks", "tokens", "top_m", "value_dim", "P"]


def test_fewer_tokens_at_a_time_mean_more_micro_batches(make_config: MakeConfig) -> None:
    config = make_config("training.global_batch_size=1024")
    few, many = sweep(config, parse_cluster("dgx-a100-80g"), Axes(nodes=(1,), tokens=(32, 128)))
    assert few.step_seconds > many.step_seconds


def test_values_below_one_are_refused() -> None:
    with pytest.raises(PlanError, match="--top-m holds 0; every value must be at least 1"):
        check_axes(Axes(nodes=(1,), top_m=(0,)))

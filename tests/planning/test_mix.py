"""What tables would take by themselves: spans of different length hide lookups differently."""

from collections.abc import Callable
from dataclasses import replace

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import parse_cluster
from ultramem_megatron.planning.enumerate import candidates_of
from ultramem_megatron.planning.mix import most_saved_seconds, tables_alone
from ultramem_megatron.planning.problem import pose
from ultramem_megatron.planning.report import explain
from ultramem_megatron.planning.step_time import Window

MakeConfig = Callable[..., RunConfig]


def test_a_table_that_is_hidden_and_one_that_is_not_want_different_things(make_config: MakeConfig) -> None:
    problem = pose(make_config("memory.overlap=true"), parse_cluster("dgx-a100-80g:1"))
    one, *_ = [c for c in candidates_of(problem) if c.feasible]
    # little sync and a long lookup, or the other way round
    slow = {"parallel_size": 2, "forward_seconds": 4.0, "backward_seconds": 4.0, "sync_seconds": 1.0}
    fast = {"parallel_size": 8, "forward_seconds": 1.0, "backward_seconds": 1.0, "sync_seconds": 5.0}
    early, late = one.model_copy(update=slow), one.model_copy(update=fast)
    dense = replace(problem.dense, windows=(Window(0, 100.0, 100.0), Window(0, 0.0, 0.0)), turns=2.0)
    hidden, bare = tables_alone(replace(problem, dense=dense), [early, late], late)
    assert (hidden.choice, bare.choice) == (early.label, late.label)
    assert (hidden.waiting_seconds, hidden.common_waiting_seconds) == (1.0, 5.0)
    assert bare.waiting_seconds == bare.common_waiting_seconds == 2 * 2 + 5
    assert most_saved_seconds([hidden, bare]) == 4.0


def test_gains_count_on_the_stage_that_gains_most(make_config: MakeConfig) -> None:
    plan = choose_plan(make_config(), parse_cluster("local:4"))
    one = plan.tables_alone[0].model_copy(update={"waiting_seconds": 1.0, "common_waiting_seconds": 3.0})
    other = one.model_copy(update={"stage": one.stage + 1, "common_waiting_seconds": 4.0})
    assert most_saved_seconds([one, one, other]) == 4.0


def test_the_report_says_whether_a_mix_would_pay(make_config: MakeConfig) -> None:
    plan = choose_plan(make_config(), parse_cluster("local:4"))
    assert [one.span for one in plan.tables_alone] == ["1:2", "3:4"]
    assert all(one.waiting_seconds <= one.common_waiting_seconds for one in plan.tables_alone)
    assert "so there is nothing to mix" in explain(plan)
    gain = {"waiting_seconds": 0.0, "common_waiting_seconds": plan.predicted_seconds.per_step}
    other = plan.tables_alone[1].model_copy(update={"choice": "other", **gain})
    mixed = plan.model_copy(update={"tables_alone": (plan.tables_alone[0], other)})
    assert "100.0%; it is not offered" in " ".join(explain(mixed).split())

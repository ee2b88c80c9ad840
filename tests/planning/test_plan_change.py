"""What a run is told when its plan changes."""

from collections.abc import Callable

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.planning.plan_change import describe_change

MakeConfig = Callable[..., RunConfig]


def test_another_layout_is_named_with_costs_and_reason(make_config: MakeConfig) -> None:
    before = choose_plan(make_config("memory.partition=dimension_wise", "memory.parallel_size=4"), local_cluster(4))
    after = choose_plan(make_config("memory.partition=number_wise", "memory.parallel_size=2"), local_cluster(2))
    text = describe_change(before, after)
    assert "were dimension_wise over 4 ranks and are now number_wise over 2 ranks" in text
    assert "the run has 2 ranks and had 4" in text
    assert "dimension_wise over 4 ranks needs more ranks than there are" in text


def test_a_layout_that_stays_is_said_to_stay(make_config: MakeConfig) -> None:
    pins = ("memory.partition=number_wise", "memory.parallel_size=2")
    before, after = (choose_plan(make_config(*pins), local_cluster(ranks)) for ranks in (4, 2))
    assert "the layout is not: the memory tables stay number_wise over 2 ranks" in describe_change(before, after)


def test_a_layout_that_would_not_do_says_why(make_config: MakeConfig) -> None:
    cluster = local_cluster(3)
    before = choose_plan(make_config("memory.partition=dimension_wise", "memory.parallel_size=3"), cluster)
    after = choose_plan(make_config("memory.value_dim=32"), cluster)
    text = describe_change(before, after)
    assert "memory.value_dim is 32 and was 24" in text
    assert "memory.value_dim = 32 does not divide by 3" in text

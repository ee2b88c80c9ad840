"""Candidates, their order, pins, ties, and what is said when nothing fits."""

import itertools
from collections.abc import Callable

import pytest

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import ConfigError, PlanError
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.comm_cost import (
    LookupShape,
    WireBytes,
    dimension_wise_bytes,
    number_wise_bytes,
    partition_bytes,
)
from ultramem_megatron.planning.enumerate import enumerate_candidates
from ultramem_megatron.planning.plan import Candidate, CostModel, Rejection
from ultramem_megatron.planning.report import summary
from ultramem_megatron.planning.sync_cost import table_sync_bytes
from ultramem_megatron.units import GIB, MIB

MakeConfig = Callable[..., RunConfig]
MakeCluster = Callable[..., ClusterSpec]


def by_label(candidates: list[Candidate] | tuple[Candidate, ...]) -> dict[str, Candidate]:
    return {candidate.label: candidate for candidate in candidates}


def test_every_divisor_of_a_stage_is_a_candidate(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    found = {(c.partition, c.parallel_size) for c in enumerate_candidates(make_config(), make_cluster(6))}
    unsplit = {PartitionName.AUTO, PartitionName.REPLICATED, PartitionName.GRID}
    split = itertools.product(set(PartitionName) - unsplit, (2, 3, 6))
    assert found == {(PartitionName.REPLICATED, 1), *split}


@pytest.mark.parametrize(
    ("nodes", "gpus_per_node", "pin", "grids"),
    [
        (1, 8, "auto", []),
        (2, 4, "auto", [(8, 4)]),
        (3, 4, "auto", [(6, 2), (12, 4)]),
        (8, 1, "auto", []),
        (1, 8, "2", [(4, 2), (8, 2)]),
    ],
)
def test_a_grid_is_offered_where_a_group_has_several_nodes_of_several_ranks(
    make_config: MakeConfig, nodes: int, gpus_per_node: int, pin: str, grids: list[tuple[int, int]]
) -> None:
    """Of 12 ranks in nodes of 4, a group of 6 begins or ends in the middle of a node: in it pairs are together."""
    cluster = ClusterSpec(name="test", nodes=nodes, gpus_per_node=gpus_per_node, memory_bytes=GIB)
    candidates = enumerate_candidates(make_config(f"memory.node_size={pin}"), cluster)
    found = [c for c in candidates if c.partition is PartitionName.GRID]
    assert [(c.parallel_size, c.node_size) for c in found] == grids
    assert all(c.feasible and c.label.endswith(f"ranks in nodes of {c.node_size}") for c in found)
    assert all(c.node_size is None for c in candidates if c not in found)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ["node_size=auto"],
            r"grid over 4 ranks in nodes of 4: its 4 ranks are one node, so it would be dimension_wise",
        ),
        (["node_size=1"], r"each of its ranks is a node of its own, so it would be number_wise"),
        (["node_size=3"], r"nodes of memory.node_size = 3 ranks do not make up 4"),
        (["node_size=2", "value_dim=10", "cores=1"], None),
        (["node_size=2", "value_dim=9", "cores=1"], r"memory.value_dim = 9 does not divide by 2"),
        (
            ["node_size=2", "keys_per_side=2", "top_m=2", "parallel_size=16"],
            r"8 nodes are more than the table's 4 rows",
        ),
    ],
)
def test_a_grid_that_was_asked_for_says_what_it_cannot_split(
    make_config: MakeConfig, make_cluster: MakeCluster, overrides: list[str], reason: str | None
) -> None:
    pins = ("memory.partition=grid", "memory.parallel_size=4", *(f"memory.{override}" for override in overrides))
    ranks = 16 if overrides[-1] == "parallel_size=16" else 4
    config = make_config(*pins, "training.global_batch_size=64")
    if reason is None:
        assert choose_plan(config, make_cluster(ranks)).partition is PartitionName.GRID
        return
    with pytest.raises(
        PlanError, match=reason + r".*Change memory.partition, memory.parallel_size, memory.node_size or"
    ):
        choose_plan(config, make_cluster(ranks))


def test_a_pipeline_stage_bounds_the_group(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    config = make_config("parallelism.pipeline=2", "parallelism.tensor=2")
    sizes = {c.parallel_size for c in enumerate_candidates(config, make_cluster(8))}
    assert sizes == {1, 2, 4}


def test_bytes_of_a_step_by_hand(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    """6 ranks, 2 samples of 32 tokens at a time, 48 a step: 4 micro-batches; 2 tables of 1024 x 24 fp32."""
    shape = LookupShape(tokens=64, picks=8, num_rows=1024, value_dim=24, element_bytes=4, expansion=4, cores=2)
    found = by_label(choose_plan(make_config(), make_cluster(6)).candidates)
    for label, wire, shard, replicas in (
        ("number_wise over 3 ranks", number_wise_bytes(shape, 3), 342 * 24, 2),
        ("dimension_wise over 2 ranks", dimension_wise_bytes(shape, 2), 1024 * 12, 3),
    ):
        sync = table_sync_bytes(shard_elements=shard, replicas=replicas, element_bytes=4).total_bytes
        assert found[label].forward_bytes == wire.forward_bytes
        assert found[label].backward_bytes == wire.backward_bytes
        assert found[label].sync_bytes == sync
        assert found[label].bytes_per_step == 2 * (4 * (wire.forward_bytes + wire.backward_bytes) + sync)
    assert found["replicated"].forward_bytes == 0
    assert found["replicated"].sync_bytes == (4 + 4) * 1024 * 24 * 5 / 6


def test_by_bytes_the_fewest_win(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan = choose_plan(make_config(), make_cluster(6), cost_model=CostModel.BYTES)
    feasible = [c for c in plan.candidates if c.feasible]
    assert [c.bytes_per_step for c in feasible] == sorted(c.bytes_per_step for c in feasible)
    assert len(feasible) == 10
    assert plan.chosen == feasible[0]
    assert plan.verdict_by_bytes == plan.partition == feasible[0].partition
    assert [(p.table, p.span, p.num_rows, p.value_dim) for p in plan.placements] == [
        (0, "1:2", 1024, 24),
        (1, "3:4", 1024, 24),
    ]
    assert {p.parallel_size for p in plan.placements} == {plan.memory_parallel_size}


def test_predictions_are_of_both_tables(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan = choose_plan(make_config("memory.parallel_size=2"), make_cluster(6))
    assert plan.chosen is not None
    assert plan.predicted.forward_per_micro_batch == 2 * plan.chosen.forward_bytes
    assert plan.predicted.backward_per_micro_batch == 2 * plan.chosen.backward_bytes
    assert plan.predicted.table_sync_per_step == 2 * plan.chosen.sync_bytes > 0
    assert plan.predicted.per_step == plan.chosen.bytes_per_step


def test_wide_rows_go_dimension_wise_and_narrow_ones_number_wise(
    make_config: MakeConfig, make_cluster: MakeCluster
) -> None:
    """The whole stage shares one copy. One head core, no expansion: near the paper's v* = 8 x 22 / 7 = 25."""
    plain = ("memory.parallel_size=8", "memory.expansion=1", "memory.cores=1", "training.global_batch_size=64")
    by_bytes = {"cost_model": CostModel.BYTES}
    wide = choose_plan(make_config(*plain, "memory.value_dim=128"), make_cluster(8), **by_bytes)
    narrow = choose_plan(make_config(*plain, "memory.value_dim=8"), make_cluster(8), **by_bytes)
    assert (wide.partition, narrow.partition) == (PartitionName.DIMENSION_WISE, PartitionName.NUMBER_WISE)
    assert wide.paper_verdict is not None and narrow.paper_verdict is not None
    assert wide.paper_verdict.break_even_value_dim == pytest.approx(8 * 22 / 7)
    assert (wide.paper_verdict.partition, narrow.paper_verdict.partition) == (wide.partition, narrow.partition)


def test_small_tables_of_a_busy_model_are_replicated(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan = choose_plan(make_config("memory.keys_per_side=4"), make_cluster(2))
    assert plan.partition == PartitionName.REPLICATED
    assert plan.memory_parallel_size == 1
    assert plan.paper_verdict is not None and plan.paper_verdict.ranks == 2


def test_one_rank_replicates_and_sends_nothing(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan = choose_plan(make_config(), make_cluster(1))
    assert (plan.partition, plan.memory_parallel_size) == (PartitionName.REPLICATED, 1)
    assert plan.predicted.per_step == 0
    assert plan.paper_verdict is None


def test_a_tie_is_called_a_tie_and_goes_number_wise(
    make_config: MakeConfig, make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = WireBytes({"rows": 50}, {"row_gradients": 30})
    monkeypatch.setattr("ultramem_megatron.planning.split.partition_bytes", lambda *_: same)
    plan = choose_plan(make_config("memory.parallel_size=2"), make_cluster(2), cost_model=CostModel.BYTES)
    assert {c.forward_bytes + c.backward_bytes for c in plan.candidates if c.feasible} == {80}
    assert plan.partition == PartitionName.NUMBER_WISE
    assert plan.tied_with == tuple(c.label for c in plan.candidates if c.feasible)[1:]
    assert "dimension_wise over 2 ranks" in plan.tied_with


@pytest.mark.parametrize("partition", ["number_wise", "number_wise_pooled", "dimension_wise"])
def test_a_pinned_partition_leaves_the_ranks_to_choose(
    make_config: MakeConfig, make_cluster: MakeCluster, partition: str
) -> None:
    plan = choose_plan(make_config(f"memory.partition={partition}"), make_cluster(6))
    assert plan.partition == partition
    free = choose_plan(make_config(), make_cluster(6))
    best = min((c for c in free.candidates if c.partition == partition), key=lambda c: c.bytes_per_step)
    assert plan.memory_parallel_size == best.parallel_size


def test_pinned_ranks_leave_the_partition_to_choose(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan = choose_plan(make_config("memory.parallel_size=3"), make_cluster(6))
    assert plan.memory_parallel_size == 3
    assert {c.label for c in plan.candidates if c.feasible} == {
        "number_wise over 3 ranks",
        "number_wise_pooled over 3 ranks",
        "dimension_wise over 3 ranks",
    }
    out = by_label(plan.candidates)["number_wise over 6 ranks"]
    assert (out.rejected_by, out.reason) == (Rejection.PIN, "memory.parallel_size is set to 3")


def test_replicated_may_be_pinned_either_way(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    for pins in (
        ["memory.partition=replicated"],
        ["memory.parallel_size=1"],
        ["memory.partition=replicated", "memory.parallel_size=1"],
    ):
        plan = choose_plan(make_config(*pins), make_cluster(4))
        assert (plan.partition, plan.memory_parallel_size) == (PartitionName.REPLICATED, 1)


@pytest.mark.parametrize(
    ("pins", "ranks", "message"),
    [
        (["partition=replicated", "parallel_size=4"], 4, "replicated contradicts memory.parallel_size = 4"),
        (["partition=number_wise", "parallel_size=1"], 4, "nothing to split over 1 rank; set memory.parallel_size to"),
        (["partition=dimension_wise"], 1, "dimension_wise needs several ranks in a pipeline stage, and there is 1"),
    ],
)
def test_contradictory_pins_are_refused(
    make_config: MakeConfig, make_cluster: MakeCluster, pins: list[str], ranks: int, message: str
) -> None:
    with pytest.raises(PlanError) as caught:
        choose_plan(make_config(*(f"memory.{pin}" for pin in pins)), make_cluster(ranks))
    assert message in str(caught.value)


def test_pinned_ranks_must_divide_a_stage(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    with pytest.raises(ConfigError, match=r"memory.parallel_size = 4 must divide .* = 6; near it these do: 1, 2, 3, 6"):
        choose_plan(make_config("memory.parallel_size=4"), make_cluster(6))


def test_a_width_that_does_not_divide_rules_out_dimension_wise(
    make_config: MakeConfig, make_cluster: MakeCluster
) -> None:
    plan = choose_plan(make_config("memory.value_dim=4", "memory.parallel_size=3"), make_cluster(3))
    out = by_label(plan.candidates)["dimension_wise over 3 ranks"]
    assert (out.feasible, out.rejected_by) == (False, Rejection.SHAPE)
    assert out.reason == "memory.value_dim = 4 does not divide by 3"
    assert plan.partition == PartitionName.NUMBER_WISE


V2 = ("memory.variant=ultramem_v2", "memory.pre_value_dim=4")


@pytest.mark.parametrize(
    ("value_dim", "reason"),
    [
        (24, "memory.pre_value_dim = 4 does not divide by 3"),
        (8, "memory.value_dim = 8 does not divide by 3 and memory.pre_value_dim = 4 does not divide by 3"),
    ],
)
def test_dimension_wise_splits_the_pre_values_too(
    make_config: MakeConfig, make_cluster: MakeCluster, value_dim: int, reason: str
) -> None:
    overrides = (*V2, f"memory.value_dim={value_dim}", "memory.parallel_size=3")
    out = by_label(choose_plan(make_config(*overrides), make_cluster(3)).candidates)["dimension_wise over 3 ranks"]
    assert (out.feasible, out.rejected_by, out.reason) == (False, Rejection.SHAPE, reason)
    with pytest.raises(
        PlanError, match=r"memory.partition, memory.parallel_size, memory.value_dim or memory.pre_value_dim$"
    ):
        choose_plan(make_config(*overrides, "memory.partition=dimension_wise"), make_cluster(3))


def test_bytes_of_a_step_with_pre_values(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    """As above, one pooled vector, and a second table of 1024 x 12; halves have 3 copies, thirds 2."""
    shape = LookupShape(tokens=64, picks=8, num_rows=1024, value_dim=24, element_bytes=4, cores=2, pre_value_dim=12)
    config = make_config("memory.variant=ultramem_v2", "memory.pre_value_dim=12")
    plan = choose_plan(config, make_cluster(6))
    assert "2 tables of 1,024 rows x 24 and as many pre-values x 12, at" in " ".join(summary(plan).split())
    found = by_label(plan.candidates)
    for partition, ranks, shard in (
        (PartitionName.NUMBER_WISE, 3, 342 * 36),
        (PartitionName.DIMENSION_WISE, 2, 1024 * 18),
    ):
        wire = partition_bytes(partition, shape, ranks)
        sync = table_sync_bytes(shard_elements=shard, replicas=6 // ranks, element_bytes=4).total_bytes
        candidate = found[f"{partition} over {ranks} ranks"]
        assert (candidate.forward_bytes, candidate.backward_bytes) == (wire.forward_bytes, wire.backward_bytes)
        assert candidate.sync_bytes == sync
        assert candidate.bytes_per_step == 2 * (4 * (wire.forward_bytes + wire.backward_bytes) + sync)
    assert found["replicated"].sync_bytes == (4 + 4) * 1024 * 36 * 5 / 6


def test_more_ranks_than_rows_rule_out_number_wise(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    config = make_config("memory.keys_per_side=2", "memory.top_m=2", "memory.value_dim=24")
    found = by_label(choose_plan(config, make_cluster(6)).candidates)
    for partition in ("number_wise", "number_wise_pooled"):
        assert found[f"{partition} over 6 ranks"].reason == "6 ranks are more than the table's 4 rows"


def test_nothing_but_a_shape_in_the_way(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    config = make_config("memory.value_dim=4", "memory.parallel_size=3", "memory.partition=dimension_wise")
    with pytest.raises(PlanError) as caught:
        choose_plan(config, make_cluster(3))
    text = str(caught.value)
    assert "dimension_wise over 3 ranks: memory.value_dim = 4 does not divide by 3" in text
    assert "would fit, but memory.partition is set to dimension_wise" in text
    assert "number_wise over 3 ranks:" not in text


def test_capacity_rejects_what_does_not_fit_and_keeps_the_reason(
    make_config: MakeConfig, make_cluster: MakeCluster
) -> None:
    """2 tables of 65,536 x 24 fp32: 12.6 MB of weights and as much gradient on a rank that holds them whole."""
    config = make_config("memory.keys_per_side=256")
    free = by_label(choose_plan(config, make_cluster(6)).candidates)
    limit = int(free["replicated"].memory_bytes) - 1
    plan = choose_plan(config, make_cluster(6, limit))
    out = by_label(plan.candidates)["replicated"]
    assert out.rejected_by == Rejection.CAPACITY
    assert out.reason.startswith("needs 0.0") and "GiB usable" in out.reason
    assert plan.candidates[-1] == out


def test_when_nothing_fits_the_missing_gib_and_a_remedy_are_named(
    make_config: MakeConfig, make_cluster: MakeCluster
) -> None:
    with pytest.raises(PlanError) as caught:
        choose_plan(make_config("memory.keys_per_side=4096"), make_cluster(6))
    text = str(caught.value)
    assert 'fits cluster "test:6". The smallest, ' in text
    assert "more than the 1.00 GiB usable (table weights 0.5" in text
    assert text.endswith("use more ranks to share the tables, or lower memory.keys_per_side or memory.value_dim")
    assert "\n" not in text


def test_a_pin_that_stands_in_the_way_is_named(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    config = make_config("memory.keys_per_side=2048", "memory.parallel_size=1")
    with pytest.raises(PlanError) as caught:
        choose_plan(config, make_cluster(6, 1536 * MIB))
    text = str(caught.value)
    assert "The smallest, replicated, needs" in text
    assert "over 6 ranks would fit, but memory.parallel_size is set to 1" in text
    assert "use a larger memory.parallel_size" in text


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        (
            "model.experts=64 model.expert_ffn_hidden=8192",
            "The experts weigh most: raise parallelism.expert, tensor or pipeline, or lower model.experts",
        ),
        ("model.hidden=8192", "The dense model weighs most: raise parallelism.tensor or pipeline"),
        (
            "model.seq_length=65536",
            "Activations weigh most: lower training.micro_batch_size, set training.recompute=full, or raise",
        ),
    ],
)
def test_remedies_follow_what_weighs_most(
    make_config: MakeConfig, make_cluster: MakeCluster, override: str, remedy: str
) -> None:
    for variant in ("ultramem", "none"):
        with pytest.raises(PlanError) as caught:
            choose_plan(make_config(*override.split(), f"memory.variant={variant}"), make_cluster(6))
        assert remedy in str(caught.value)


def test_a_dense_model_has_a_plan_without_placements(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan = choose_plan(make_config("memory.variant=none"), make_cluster(6))
    assert plan.placements == plan.candidates == ()
    assert plan.partition is plan.chosen is plan.verdict_by_bytes is plan.paper_verdict is None
    assert plan.memory_parallel_size == 1
    assert plan.predicted.per_step == 0
    assert plan.memory["dense_weights"] > 0 == plan.memory["table_weights"]


def test_tensor_parallel_ranks_share_the_tokens(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    whole = choose_plan(make_config("memory.parallel_size=2"), make_cluster(2))
    split = choose_plan(make_config("memory.parallel_size=2", "parallelism.tensor=2"), make_cluster(2))
    label = "dimension_wise over 2 ranks"
    assert by_label(whole.candidates)[label].forward_bytes == 2 * by_label(split.candidates)[label].forward_bytes


def test_copies_are_counted_inside_a_stage(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    """8 ranks in 2 stages: a group of 2 has 2 copies of its shard, and each stage one of the two tables."""
    plan = choose_plan(make_config("parallelism.pipeline=2", "memory.parallel_size=2"), make_cluster(8))
    found = by_label(plan.candidates)["dimension_wise over 2 ranks"]
    assert found.sync_bytes == (4 + 4) * 1024 * 12 / 2
    micro_batches = 48 // (4 * 2)
    assert found.bytes_per_step == micro_batches * (found.forward_bytes + found.backward_bytes) + found.sync_bytes

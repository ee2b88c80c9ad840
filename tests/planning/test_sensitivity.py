"""What flips a choice: the flip named does flip it, and less does not."""

from collections.abc import Callable

import pytest

from ultramem_megatron.config.memory import GroupPlacement
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import parse_cluster
from ultramem_megatron.planning.enumerate import candidates_of
from ultramem_megatron.planning.plan import CostModel, Plan
from ultramem_megatron.planning.problem import Problem, pose
from ultramem_megatron.planning.ranking import TIE_FRACTION, rank_candidates
from ultramem_megatron.planning.sensitivity import best_by_size

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def problem(make_config: MakeConfig) -> Problem:
    """Wide rows, so that lookups are not hidden."""
    sizes = ("memory.keys_per_side=512", "memory.value_dim=256", "memory.top_m=16", "model.seq_length=1024")
    config = make_config("training.global_batch_size=64", *sizes, "training.precision=bf16", "memory.placement=packed")
    return pose(config, parse_cluster("dgx-a100-80g:4"))


def best(problem: Problem, plan: Plan) -> str:
    return rank_candidates(candidates_of(problem), CostModel.TIME, plan)[0][0].label


def test_a_flip_by_tokens_is_where_it_is_said(problem: Problem) -> None:
    plan = choose_plan(problem.config, problem.cluster)
    assert plan.chosen is not None
    flips = [flip for flip in plan.flips if flip.what.startswith("tokens")]
    assert flips
    for flip in flips:
        assert flip.now == problem.workload.lookup.tokens
        assert flip.choice != plan.chosen.label
        assert best(problem.with_tokens(flip.at / flip.now), plan) == flip.choice
        between = (flip.at / flip.now) ** 0.5
        if abs(between - 1) > 0.25:
            assert best(problem.with_tokens(between), plan) in (plan.chosen.label, flip.choice)


def test_more_cards_shorten_what_leaves_the_node(problem: Problem) -> None:
    now, more = candidates_of(problem), candidates_of(problem.with_network(2))
    for before, after in zip(now, more, strict=True):
        if before.step_seconds and before.nodes > 1:
            assert after.forward_seconds < before.forward_seconds
        if before.nodes == 1 and before.parallel_size > 1:
            assert after.forward_seconds == before.forward_seconds


def test_the_layout_that_a_run_has_wins_a_tie(problem: Problem) -> None:
    free = choose_plan(problem.config, problem.cluster)
    for label in free.tied_with[:2]:
        rival = next(c for c in free.candidates if c.label == label)
        assert rival.step_seconds <= free.candidates[0].step_seconds * (1 + 2 * TIE_FRACTION)
        current = free.model_copy(update={"chosen": rival})
        again = choose_plan(problem.config, problem.cluster, current=current)
        assert again.chosen == rival
        assert free.candidates[0].label in again.tied_with


def test_the_fastest_at_each_size(problem: Problem) -> None:
    candidates = choose_plan(problem.config, problem.cluster).candidates
    for one in best_by_size(candidates):
        same = [c for c in candidates if c.feasible and c.parallel_size == one.parallel_size]
        assert one.step_seconds == min(c.step_seconds for c in same)


def test_by_bytes_nothing_is_said(problem: Problem) -> None:
    assert choose_plan(problem.config, problem.cluster, cost_model=CostModel.BYTES).flips == ()


def test_far_ranks_are_chosen_where_copies_are_the_burden(make_config: MakeConfig) -> None:
    """One micro-batch a step: the gradients of large tables outweigh the lookups."""
    sizes = ("memory.keys_per_side=1024", "memory.value_dim=512", "memory.parallel_size=4")
    config = make_config("training.global_batch_size=64", "training.precision=bf16", *sizes)
    plan = choose_plan(config, parse_cluster("dgx-a100-80g:4"))
    assert plan.chosen is not None and plan.memory_placement is GroupPlacement.SPREAD
    packed = next(c for c in plan.candidates if c.label == plan.chosen.label.removesuffix(", spread"))
    assert packed.sync_seconds > plan.chosen.sync_seconds
    assert packed.forward_seconds < plan.chosen.forward_seconds

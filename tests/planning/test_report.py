"""What the reader is told, and that it fits the page."""

from collections.abc import Callable

import pytest

from ultramem_launch.configs import load_config
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import ClusterSpec, parse_cluster
from ultramem_megatron.planning.plan import CostModel, Plan
from ultramem_megatron.planning.report import NOT_MODELLED, WIDTH, explain, summary

MakeConfig = Callable[..., RunConfig]
MakeCluster = Callable[..., ClusterSpec]


def joined(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("overrides", "ranks"),
    [
        ([], 6),
        ([], 1),
        (["memory.variant=none"], 6),
        (["memory.value_dim=10", "memory.partition=number_wise"], 24),
        (["memory.top_m=1", "memory.heads=1", "memory.heads_per_query=1"], 48),
    ],
)
def test_no_line_is_longer_than_the_page(
    make_config: MakeConfig, make_cluster: MakeCluster, overrides: list[str], ranks: int
) -> None:
    config = make_config("training.global_batch_size=96", *overrides)
    plan = choose_plan(config, make_cluster(ranks))
    for text in (summary(plan), explain(plan)):
        assert max(len(line) for line in text.splitlines()) <= WIDTH
        assert not any(line != line.rstrip() for line in text.splitlines())


def test_a_large_cluster_fits_the_page(make_config: MakeConfig) -> None:
    config = make_config(
        "training.global_batch_size=4096", "memory.keys_per_side=1100", "memory.value_dim=512", "memory.key_dim=512"
    )
    text = explain(choose_plan(config, parse_cluster("dgx-a100-80g:128")))
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "1024 ranks = tensor 1 x data 1024 x pipeline 1, 76.0 GiB usable" in text


def test_the_summary_names_choice_cost_and_rivals(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan = choose_plan(make_config("memory.parallel_size=3"), make_cluster(6))
    text = joined(summary(plan))
    assert f"Plan {plan.hash[:12]} for test:6: 6 ranks = tensor 1 x data 6 x pipeline 1" in text
    assert f"Choice: {plan.candidates[0].label}, 2 copies of each table, each inside a node. 2 tables of " in text
    assert "at spans 1:2, 3:4." in text
    first, second = plan.candidates[:2]
    fit = sum(candidate.feasible for candidate in plan.candidates)
    assert first.step_seconds <= second.step_seconds
    assert fit > 1 and f"steps of the {fit} candidates that fit; next: {second.label} (" in text.replace(
        "step of", "steps of"
    )


def test_by_bytes_rivals_are_compared_in_bytes(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    by_bytes = {"cost_model": CostModel.BYTES}
    plan = choose_plan(make_config("memory.parallel_size=3"), make_cluster(6), **by_bytes)
    first, second = plan.candidates[:2]
    rival = f"{second.label} ({second.bytes_per_step / first.bytes_per_step:.2f} times as many)"
    assert f"Fewest bytes of the 3 candidates that fit; next: {rival}" in joined(summary(plan))


def test_what_a_pin_costs_is_said(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    free, pinned = make_config(), make_config("memory.partition=number_wise", "memory.parallel_size=6")
    best = choose_plan(free, make_cluster(6)).candidates[0]
    text = joined(summary(choose_plan(pinned, make_cluster(6))))
    assert f"The settings exclude {best.label}, which is faster (" in text
    assert "The settings exclude" not in summary(choose_plan(free, make_cluster(6)))


def test_the_explanation_holds_every_candidate_and_reason(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan = choose_plan(make_config("memory.value_dim=4", "memory.partition=number_wise"), make_cluster(6))
    text = explain(plan)
    table = [line.split() for line in text.splitlines()]
    for candidate in plan.candidates:
        assert any(line[:2] == [candidate.partition, str(candidate.parallel_size)] for line in table)
        if not candidate.feasible:
            assert f"{candidate.label}: {candidate.reason}." in text
    assert "dimension_wise over 3 ranks: memory.value_dim = 4 does not divide by 3." in text
    assert sum(line[-1:] == ["chosen"] for line in table) == 2  # of the rivals, and of all


def test_the_papers_verdict_stands_beside_ours(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    """K = 8, P = 3, Dv = 24: (4 + 48) 8 x 2 / 3 = 277.3 against 6 x 8 x 2 + 2 x 24 x 2 / 3 = 128; v* = 8 x 7 / 7."""
    pins = ("memory.parallel_size=3", "memory.partition=dimension_wise")
    text = joined(explain(choose_plan(make_config(*pins), make_cluster(6))))
    assert "Verdict by bytes: dimension_wise" in text
    assert "over 3 ranks say the same: number-wise 277 B, dimension-wise 128 B for each token" in text
    assert "equal at a row width v* = 8.0, and dimension-wise is cheaper above it (memory.value_dim = 24)" in text


def test_one_pick_has_no_break_even(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    config = make_config("memory.top_m=1", "memory.heads=1", "memory.heads_per_query=1", "memory.parallel_size=6")
    assert "number-wise is cheaper at every row width" in joined(explain(choose_plan(config, make_cluster(6))))


def test_a_tie_is_said_aloud(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan = choose_plan(make_config("memory.parallel_size=3"), make_cluster(6))
    tied = plan.model_copy(update={"tied_with": ("dimension_wise over 6 ranks",)})
    assert "It is a tie with dimension_wise over 6 ranks: steps within 1% are as good as equal." in joined(
        summary(tied)
    )
    by_bytes = tied.model_copy(update={"cost_model": CostModel.BYTES})
    assert "It is a tie with dimension_wise over 6 ranks: the bytes give no reason" in joined(summary(by_bytes))


def test_memory_is_listed_by_part_and_limits_are_owned(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan: Plan = choose_plan(make_config(), make_cluster(6))
    text = explain(plan)
    for part, count in plan.memory.items():
        assert (part.replace("_", " ") in text) is (count > 0)
    assert "of usable" in text
    for left_out in NOT_MODELLED:
        assert left_out in joined(text)


def test_a_dense_model_has_nothing_to_choose(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    text = explain(choose_plan(make_config("memory.variant=none"), make_cluster(6)))
    assert "no memory layers, so there is no table to split" in text
    assert "Candidates. Bytes" not in text
    assert "dense weights" in text and "table weights" not in text


def test_spans_across_stages_are_named_with_their_bytes(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    """Two samples of 32 tokens, 64 wide, in fp32: once forward from the one stage, once backward from the other."""
    crossing = choose_plan(make_config("parallelism.pipeline=2", "memory.spans=2:3"), make_cluster(4))
    assert crossing.predicted.pending_per_micro_batch == 2 * 32 * 64 * 4
    assert "stages cost a rank up to 16.0 KiB in each micro-batch" in joined(summary(crossing))
    inside = choose_plan(make_config("parallelism.pipeline=2"), make_cluster(4))
    assert "boundary" not in summary(inside)


def test_both_verdicts_and_what_would_flip_the_choice_are_said(make_config: MakeConfig) -> None:
    """Far more tokens a rank than the span's blocks hide."""
    config = make_config("training.global_batch_size=64", "memory.keys_per_side=256", "memory.value_dim=256")
    plan = choose_plan(config, parse_cluster("dgx-a100-80g:4"))
    text = joined(summary(plan))
    assert "Verdict by bytes: " in text and "Verdict by time: " in text
    assert "What would flip the choice" in text
    for flip in plan.flips:
        assert f"{flip.what}, now {flip.now:g}" in text and flip.choice in text
    because = joined(explain(plan))
    assert "Why." in because and "Trust: " in because and "The fastest that fits at each number of ranks P." in because


def test_what_is_slower_because_of_its_copies_is_not_blamed_on_lookups() -> None:
    """The blocks of this model hide every lookup, so what is left of the difference is the copies."""
    plan = choose_plan(load_config("ultramem-1.6b-x12", []), parse_cluster("dgx-a100-80g:8"))
    own = plan.candidates[0]
    rival = next(c for c in plan.candidates if c.partition == "number_wise_pooled")
    assert rival.forward_seconds > own.forward_seconds
    assert rival.step_seconds - own.step_seconds == pytest.approx(6 * (rival.sync_seconds - own.sync_seconds))
    sentence = joined(explain(plan)).partition(f"- {rival.label} is ")[2].partition(". -")[0]
    assert "a step slower: its copies take" in sentence and "a lookup takes" not in sentence

"""The document: JSON there and back, its hash, damage, and belonging to a run."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.planning.plan import Plan
from ultramem_megatron.planning.plan_match import check_plan_matches

MakeConfig = Callable[..., RunConfig]
MakeCluster = Callable[..., ClusterSpec]


@pytest.fixture
def plan(make_config: MakeConfig, make_cluster: MakeCluster) -> Plan:
    return choose_plan(make_config(), make_cluster(6))


@pytest.mark.parametrize(
    "overrides", [[], ["memory.variant=none"], ["memory.value_dim=10"], ["memory.parallel_size=3"]]
)
def test_json_there_and_back(
    make_config: MakeConfig, make_cluster: MakeCluster, tmp_path: Path, overrides: list[str]
) -> None:
    plan = choose_plan(make_config(*overrides), make_cluster(6))
    plan.save(tmp_path / "new" / "plan.json")
    again = Plan.load(tmp_path / "new" / "plan.json")
    assert again == plan
    assert again.hash == plan.hash
    assert again.to_json() == plan.to_json()


def test_the_document_names_its_kind_version_and_hash(plan: Plan) -> None:
    document = json.loads(plan.to_json())
    assert (document["schema"], document["version"], document["hash"]) == ("ultramem-plan", 4, plan.hash)
    assert re.fullmatch("[0-9a-f]{64}", plan.hash)
    assert document["placements"][0]["partition"] in ("number_wise", "dimension_wise", "replicated")
    assert all(candidate["strategy"] != "auto" for candidate in document["candidates"])
    assert {c["rejected_by"] for c in document["candidates"]} <= {None, "pin", "shape", "capacity"}


def test_the_hash_is_of_the_content_not_of_its_writing(plan: Plan) -> None:
    document = json.loads(plan.to_json())
    reordered = json.dumps(dict(reversed(document.items())), indent=None)
    assert Plan.from_json(reordered).hash == plan.hash


def test_the_same_run_gives_the_same_hash_and_another_run_another(
    make_config: MakeConfig, make_cluster: MakeCluster, plan: Plan
) -> None:
    assert choose_plan(make_config(), make_cluster(6)).hash == plan.hash
    assert choose_plan(make_config("training.steps=7", "optimizer.learning_rate=1"), make_cluster(6)).hash == plan.hash
    others = [make_config("memory.top_m=5"), make_config("model.layers=8"), make_config("training.precision=bf16")]
    assert len({plan.hash, *(choose_plan(other, make_cluster(6)).hash for other in others)}) == 4


def test_a_plan_is_frozen(plan: Plan) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        plan.world_size = 7  # type: ignore[misc]


def edited(plan: Plan, **changes: object) -> str:
    return json.dumps(json.loads(plan.to_json()) | changes)


def test_damaged_documents_are_refused_by_name(plan: Plan, tmp_path: Path) -> None:
    for text, message in (
        ("{", "old.json is not JSON"),
        ("[]", "old.json is no plan"),
        ('{"schema": "other"}', 'old.json is no plan: "schema" should be "ultramem-plan"'),
        (edited(plan, version=3), r"old.json: version: Input should be 4"),
        (edited(plan, surprise=1), r"old.json: surprise: Extra inputs are not permitted"),
        (edited(plan, memory_parallel_size=7), r"old.json was changed after it was written: its hash is"),
        (edited(plan, hash=None), "it states None"),
    ):
        (tmp_path / "old.json").write_text(text)
        with pytest.raises(PlanError, match=message):
            Plan.load(tmp_path / "old.json")
    with pytest.raises(PlanError, match=r"nowhere.json cannot be read .*`ultramem plan --save`"):
        Plan.load(tmp_path / "nowhere.json")


def test_a_plan_matches_its_run_and_settings_that_do_not_matter(make_config: MakeConfig, plan: Plan) -> None:
    check_plan_matches(plan, make_config(), 6)
    check_plan_matches(plan, make_config("training.steps=5", "data.synthetic=true", "model.vocab_size=250"), 6)
    check_plan_matches(plan, make_config(f"memory.partition={plan.partition}"), 6)
    check_plan_matches(plan, make_config(f"memory.parallel_size={plan.memory_parallel_size}"), 6)


def test_a_pinned_plan_serves_a_run_without_the_pin(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    pinned = choose_plan(make_config("memory.partition=number_wise"), make_cluster(6))
    check_plan_matches(pinned, make_config(), 6)


def test_a_plan_of_another_run_is_refused_with_the_difference(
    make_config: MakeConfig, make_cluster: MakeCluster
) -> None:
    plan = choose_plan(make_config("memory.partition=number_wise", "memory.parallel_size=3"), make_cluster(6))
    for overrides, world_size, message in (
        ([], 12, "the plan is for 6 ranks, but the run has 12; plan again"),
        (["memory.value_dim=48"], 6, "another run: memory.value_dim is 24 there and 48 here;"),
        (["memory.expansion=1"], 6, "memory.expansion is 4 there and 1 here"),
        (["memory.key_layout=full"], 6, "memory.key_layout is split there and full here"),
        (
            ["memory.variant=ultramem_v2", "memory.pre_value_dim=8"],
            6,
            "memory.variant is ultramem there and ultramem_v2 here, memory.pre_value_dim is 0 there and 8 here",
        ),
        (["parallelism.tensor=2"], 6, "parallelism.tensor is 1 there and 2 here"),
        (["memory.variant=none"], 6, "memory.variant is ultramem there and none here"),
        (["memory.partition=dimension_wise"], 6, "number_wise, but memory.partition = dimension_wise"),
        (["memory.parallel_size=6"], 6, "over 3 ranks, but memory.parallel_size = 6"),
    ):
        with pytest.raises(PlanError) as caught:
            check_plan_matches(plan, make_config(*overrides), world_size)
        assert message in str(caught.value)


def test_a_plan_of_a_grid_names_its_nodes(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    """They are part of the placement, and a pin is compared with them."""
    plan = choose_plan(make_config("memory.partition=grid", "memory.node_size=3"), make_cluster(6))
    assert (plan.node_size, {placement.node_size for placement in plan.placements}) == (3, {3})
    assert Plan.from_json(plan.to_json()) == plan
    check_plan_matches(plan, make_config("memory.node_size=3"), 6)
    with pytest.raises(PlanError, match=r"over nodes of 3 ranks, but memory.node_size = 2; plan again"):
        check_plan_matches(plan, make_config("memory.node_size=2"), 6)
    other = choose_plan(make_config("memory.partition=number_wise"), make_cluster(6))
    assert other.node_size is None
    check_plan_matches(other, make_config("memory.node_size=2"), 6)


def test_a_dense_plan_ignores_the_memory_section(make_config: MakeConfig, make_cluster: MakeCluster) -> None:
    plan = choose_plan(make_config("memory.variant=none"), make_cluster(6))
    check_plan_matches(plan, make_config("memory.variant=none", "memory.value_dim=48"), 6)
    assert not any(key.startswith("memory.") for key in plan.config_summary if key != "memory.variant")

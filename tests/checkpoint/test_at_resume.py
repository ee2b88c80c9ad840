"""Each setting at a resume: one table says whether it takes effect, is refused, or has none; all fields are walked.

What takes effect is looked at in runs: ``test_resumed_settings.py`` and ``tests/training/test_resumed_runs.py``.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ultramem_launch.pretrain import make_plan
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.settings import ChangedSetting, changed_settings, check_same_model
from ultramem_megatron.config.at_resume import AT_RESUME, AtResume
from ultramem_megatron.config.load import resolve, to_plain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import CheckpointError, ConfigError, DataError
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.testing.settings import DATA, PLANNED, changed, fields, value_of
from ultramem_megatron.testing.tiny import EXPERTS, tiny_config

FOLDER = Path("run/checkpoints/step_00000002")
BASE, DENSE, MIXTURE = tiny_config(), tiny_config("memory.variant=none"), tiny_config(*EXPERTS)
PRODUCT_KEYS = tiny_config("memory.variant=pkm")
VERSION_2 = tiny_config("memory.variant=ultramem_v2", "memory.pre_value_dim=8")


def manifest_of(config: RunConfig) -> Manifest:
    numbers: dict[str, Any] = {"step": 2, "consumed_samples": 8, "consumed_tokens": 256, "world_size": 1}
    return Manifest(
        **numbers, data_fingerprint="", plan={}, plan_hash="", config=to_plain(config), versions={}, files={}
    )


def changes(before: RunConfig, now: RunConfig) -> list[ChangedSetting]:
    check_same_model(FOLDER, manifest_of(before), to_plain(now))
    return changed_settings(FOLDER, manifest_of(before), to_plain(now), FOLDER.parent)


def with_rule(what: AtResume) -> list[str]:
    return [field for field, rule in AT_RESUME.items() if rule.what is what]


def there(config: RunConfig, names: Iterable[str]) -> list[str]:
    """Those that belong to a part which this run has."""
    rules, settings = {name: AT_RESUME[name].part for name in names}, to_plain(config)
    return [name for name, part in rules.items() if part is None or part.is_there(settings)]


def test_every_field_has_a_row() -> None:
    known = set(fields())
    assert known - AT_RESUME.keys() == set(), "say in config/at_resume.py what a resume does with them"
    assert AT_RESUME.keys() - known == set(), "no field has this name"


@pytest.mark.parametrize("field", with_rule(AtResume.REFUSED))
def test_refused_with_both_values(field: str) -> None:
    config = VERSION_2 if field == "memory.pre_value_dim" else MIXTURE if "expert" in field else BASE
    if field == "optimizer.optimizer_cpu_offload":
        with pytest.raises(ConfigError, match=r"optimizer_cpu_offload = true is not offered"):
            resolve([("base", to_plain(config)), ("other", {"optimizer": {"optimizer_cpu_offload": True}})])
        return
    now = changed(config, field)
    both = rf"{field} = {value_of(config, field)} there and {value_of(now, field)} here; use"
    with pytest.raises(CheckpointError, match=both.replace(".", r"\.")):
        changes(config, now)


@pytest.mark.parametrize("config", [BASE, DENSE, MIXTURE, PRODUCT_KEYS], ids=["ultramem", "dense", "experts", "pkm"])
def test_what_plays_no_part_is_neither_refused_nor_passed_over(config: RunConfig) -> None:
    absent = [name for name in AT_RESUME if name not in there(config, AT_RESUME)]
    assert absent
    without = {*absent, *with_rule(AtResume.WITHOUT_EFFECT)}
    before, now = to_plain(config), to_plain(config)
    for field in without:
        section, name = field.split(".")
        now[section][name] = "another"
    check_same_model(FOLDER, manifest_of(config), now)
    said = changed_settings(FOLDER, manifest_of(config), now, FOLDER.parent)
    assert {change.field for change in said} == without
    for change in said:
        section, name = change.field.split(".")
        assert str(change).startswith(f"{change.field} = another instead of {before[section][name]} has no effect: ")
        assert change.as_record()["takes_effect"] is False


def test_nothing_changed() -> None:
    assert changes(BASE, BASE) == []


def test_a_load_is_named_where_it_is_passed_over_alone() -> None:
    now = tiny_config("checkpoint.load=elsewhere/checkpoints")
    manifest = manifest_of(tiny_config())
    (change,) = changed_settings(FOLDER, manifest, to_plain(now), FOLDER.parent)
    assert "checkpoint.load = elsewhere/checkpoints instead of  has no effect" in str(change)
    assert changed_settings(FOLDER, manifest, to_plain(now), Path("new/checkpoints")) == []


@pytest.mark.parametrize("field", PLANNED)
def test_the_layout_is_planned_anew(field: str, tmp_path: Path) -> None:
    before = tiny_config("training.micro_batch_size=1", "training.global_batch_size=8", *PLANNED[field])
    planned = make_plan(before, tmp_path, local_cluster(8))
    planned.save(tmp_path / "plan.json")
    now = changed(before, field)
    assert make_plan(before, tmp_path, local_cluster(8)).hash == planned.hash
    assert make_plan(now, tmp_path, local_cluster(8)).hash != planned.hash
    (change,) = changes(before, now)
    assert (change.field, change.what) == (field, AtResume.TAKES_EFFECT)


@pytest.mark.parametrize("field", sorted(DATA))
def test_data_are_those_of_the_config(field: str) -> None:
    from ultramem_megatron.data.dataset import open_training_data

    before = tiny_config("data.folder=nowhere", f"data.synthetic={field == 'data.synthetic'}")
    now = changed(before, field)
    (change,) = changes(before, now)
    assert (change.field, change.what) == (field, AtResume.TAKES_EFFECT)
    with pytest.raises(DataError, match=f"data.folder = {now.data.folder} does not exist"):
        open_training_data(now)

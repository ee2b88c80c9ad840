"""Each setting at a resume: it takes effect, or is refused with both values, or is said to have none; all fields."""

import contextlib
import dataclasses
import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest
import torch

from ultramem_launch.pretrain import make_plan
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.settings import ChangedSetting, changed_settings, check_same_model
from ultramem_megatron.config.at_resume import AT_RESUME, AtResume
from ultramem_megatron.config.load import resolve, to_plain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import CheckpointError, ConfigError, DataError, DivergedError
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import EXPERTS, tiny_config

FORKED = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")
FOLDER = Path("run/checkpoints/step_00000002")
SAVED_STEP, MORE_STEPS = 2, 2

BASE = tiny_config("training.steps=8", "optimizer.warmup_fraction=0.375", "optimizer.clip_gradient=0.5")
"""The rate rises for three steps: a step after the second is warm-up, one is not."""
DENSE, MIXTURE, PRODUCT_KEYS = (
    tiny_config("memory.variant=none"),
    tiny_config(*EXPERTS),
    tiny_config("memory.variant=pkm"),
)
VERSION_2 = tiny_config("memory.variant=ultramem_v2", "memory.pre_value_dim=8")

OTHER: dict[str, Any] = {
    "model.layers": 4,
    "model.heads": 4,
    "model.seq_length": 64,
    "model.vocab_size": 512,
    "memory.spans": "2:2",
    "memory.heads": 4,
    "memory.side_top_m": 6,
    "memory.expansion": 9,
    "memory.parallel_size": "4",
    "memory.placement": "spread",
    "memory.node_size": "2",
    "memory.partition": "dimension_wise",
    "memory.softmax": True,
    "parallelism.expert": 2,
    "parallelism.tensor": 2,
    "parallelism.pipeline": 2,
    "training.global_batch_size": 8,
    "training.micro_batch_size": 4,
    "data.sources": {"one": 1.0},
    "resilience.bad_step": "roll_back",
    "resilience.pause_seconds": 2000.0,
}
"""Where the rule of ``other_values`` makes no second valid value."""


def fields() -> list[str]:
    """Every ``section.field`` of ``RunConfig``."""
    sections = get_type_hints(RunConfig)
    return [f"{name}.{field.name}" for name, kind in sections.items() for field in dataclasses.fields(kind)]


def value_of(config: RunConfig, field: str) -> Any:
    section, name = field.split(".")
    return to_plain(config)[section][name]


def other_values(config: RunConfig, field: str) -> Iterator[Any]:
    """Values that the field has not, some of which may not be valid."""
    if field in OTHER:
        yield OTHER[field]
    value = getattr(getattr(config, field.split(".")[0]), field.split(".")[1])
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, Enum):
        yield from (member.value for member in type(value) if member is not value)
    elif isinstance(value, str):
        yield f"{value}other"
    elif isinstance(value, int):
        yield from (value * 2, value // 2, value + 1, 0)
    elif isinstance(value, float):
        yield from (value * 2, value / 2, 0.5)


def changed(config: RunConfig, field: str) -> RunConfig:
    """``config`` with another value of one field."""
    section, name = field.split(".")
    for value in other_values(config, field):
        if value == value_of(config, field):
            continue
        try:
            return resolve([("base", to_plain(config)), ("other", {section: {name: value}})])
        except ConfigError:
            continue
    raise LookupError(f"no second valid value of {field} is known; name one in OTHER")


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
    assert list(AT_RESUME) == fields(), "config/at_resume.py says what a resume does with each field, in their order"


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


# What takes effect: a rank resumes the same checkpoint once for each field, and takes steps.

PLANNED = {
    "memory.parallel_size": ("memory.partition=number_wise", "memory.parallel_size=2"),
    "memory.placement": ("memory.partition=number_wise", "memory.parallel_size=2", "memory.placement=packed"),
    "memory.partition": ("memory.partition=number_wise",),
    "memory.node_size": ("memory.partition=grid", "memory.parallel_size=8", "memory.node_size=4"),
    "parallelism.tensor": (),
    "parallelism.pipeline": (),
    "parallelism.sequence": ("parallelism.tensor=2",),
    "parallelism.virtual_pipeline": ("model.layers=4", "parallelism.pipeline=2"),
    "parallelism.expert": EXPERTS,
}
"""The plan says how they act, on eight ranks, with these settings."""
CONFIG_IS_READ = {
    *("parallelism.timeout_seconds", "training.deterministic"),
    *(field for field in fields() if field.startswith("resilience.")),
}
"""Read from the run's config where they act, which loading leaves alone; other tests show how they act."""
REPORTED = {
    *("training.eval_interval", "training.eval_batches", "training.stop_after"),
    *("checkpoint.interval", "checkpoint.keep", "monitor.log_interval", "monitor.memory_interval"),
}
"""``test_saving_and_reporting`` looks at what a run does."""
BUILT: dict[str, Callable[[Any], Any]] = {
    "training.recompute": lambda state: state.chunks[0].config.recompute_granularity,
    "training.micro_batch_size": lambda state: len(next(batches_of(state))),
    "memory.overlap": lambda state: state.chunks[0].memory.overlap,
    "checkpoint.async_save": lambda state: saver_of(state).beside_training,
}
"""Read from what was built; they change no number, or hardly."""
DATA = {"data.folder", "data.sources", "data.synthetic"}
OF_EXPERTS = {"model.expert_balance_weight"}
LEARNT = [
    field
    for field in with_rule(AtResume.TAKES_EFFECT)
    if field not in {*PLANNED, *CONFIG_IS_READ, *REPORTED, *BUILT, *DATA, *OF_EXPERTS}
]
"""All others, of which the weights after some steps tell."""
RATES = [
    *("learning_rate", "min_learning_rate_fraction", "warmup_fraction", "weight_decay", "beta1", "beta2", "epsilon"),
    *("value_lr_multiplier", "value_lr_decay_fraction"),
]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a run was like after a resume."""

    said: list[str]
    """Fields that were named as changed."""
    built: dict[str, Any]
    losses: list[float]
    rates: list[tuple[float, float]]
    """Logged ones, of the dense parameters and of the value tables."""
    weights: bytes


def build(config: RunConfig, groups: Any = None) -> Any:
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.training.setup import build_run_groups, build_train_state

    plan = choose_plan(config, local_cluster(1))
    return build_train_state(config, plan, groups or build_run_groups(config, plan, torch.device("cpu")))


def batches_of(state: Any) -> Any:
    from ultramem_megatron.data.dataset import open_training_data

    return state.training_batches(open_training_data(state.config))


def saver_of(state: Any) -> Any:
    from ultramem_megatron.training.checkpointing import SaveCheckpoints

    return SaveCheckpoints(Path("nowhere"), "", state).saver


def take_steps(state: Any, count: int) -> list[Any]:
    from ultramem_megatron.training.step import train_step

    batches = batches_of(state)
    return [train_step(state, next(batches)) for _ in range(count)]


def watch(state: Any, said: list[str]) -> Seen:
    """The next steps, and what they lead to."""
    built = {field: probe(state) for field, probe in BUILT.items()}
    results = take_steps(state, MORE_STEPS)
    weights = [parameter.detach().float().numpy().tobytes() for parameter in state.chunks[0].parameters()]
    rates = [(result.learning_rate, result.value_learning_rate) for result in results]
    return Seen(said, built, [result.loss for result in results], rates, b"".join(weights))


def settings_of(state: Any) -> list[dict[str, Any]]:
    """Of every parameter group."""
    return [{k: v for k, v in group.items() if k not in ("params", "step")} for group in state.optimizer.param_groups]


def save(root: Path, config: RunConfig) -> Any:
    from ultramem_megatron.training.checkpointing import SaveCheckpoints

    state = build(config)
    saves = SaveCheckpoints(root, "", state)
    take_steps(state, SAVED_STEP)
    saves.on_exit(state)
    return state


def resume_as(config: RunConfig, root: Path, groups: Any) -> Seen:
    from ultramem_megatron.training import checkpointing

    state = build(config, groups)
    before = settings_of(state)
    start = checkpointing.find_start(config, root)
    assert start is not None
    folder, manifest = checkpointing.resume(state, start, root, "")
    assert settings_of(state) == before, "a checkpoint sets nothing"
    assert state.config is config
    said = changed_settings(folder, manifest, to_plain(config), root)
    return watch(state, [change.field for change in said if change.what is AtResume.TAKES_EFFECT])


def resume_each(root: Path, base: RunConfig, configs: dict[str, RunConfig]) -> dict[str, Seen]:
    groups = save(root, base).groups
    return {name: resume_as(config, root, groups) for name, config in configs.items()}


def set_by_hand(base: RunConfig, configs: dict[str, RunConfig]) -> dict[str, Seen]:
    """As ``resume_each``, but the running optimizer is set anew, with no checkpoint."""
    from ultramem_megatron.optim.schedule import RateSchedule

    seen = {}
    groups = None
    for name, config in configs.items():
        state = build(base, groups)
        groups = state.groups
        take_steps(state, SAVED_STEP)
        new = config.optimizer
        for group in state.optimizer.param_groups:
            group["betas"], group["eps"] = (new.beta1, new.beta2), new.epsilon
            group["max_lr"] = new.learning_rate
            group["min_lr"] = new.learning_rate * new.min_learning_rate_fraction
        state.schedule = RateSchedule(state.optimizer, new, config.training.steps)
        seen[name] = watch(state, [])
    return seen


@pytest.fixture(scope="module")
def imported(megatron: ModuleType) -> None:

    import ultramem_megatron.training.pretrain  # noqa: F401  # once, before the forks


@pytest.fixture(scope="module")
def resumed(imported: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """By field, what a run was like that resumed with another value of it; "" for the same config."""
    configs = {field: changed(BASE, field) for field in (*LEARNT, *BUILT, *with_rule(AtResume.WITHOUT_EFFECT))}
    root = tmp_path_factory.mktemp("resumed")
    (seen,) = run_distributed(1, resume_each, root, BASE, {"": BASE, **configs}, timeout_seconds=300)
    return seen


@FORKED
@pytest.mark.slow
def test_what_takes_effect_changes_the_weights(resumed: dict[str, Seen]) -> None:
    assert resumed[""].said == []
    for field in LEARNT:
        assert resumed[field].said == [field]
        assert resumed[field].weights != resumed[""].weights, f"{field} is said to take effect, and has none"


@FORKED
@pytest.mark.slow
def test_what_is_built_anew(resumed: dict[str, Seen]) -> None:
    for field in BUILT:
        assert resumed[field].said == [field]
        assert resumed[field].built[field] != resumed[""].built[field]
        assert resumed[field].losses == pytest.approx(resumed[""].losses, rel=1e-5)


@FORKED
@pytest.mark.slow
def test_what_is_without_effect_changes_nothing(resumed: dict[str, Seen]) -> None:
    for field in with_rule(AtResume.WITHOUT_EFFECT):
        assert resumed[field] == resumed[""], field


@FORKED
@pytest.mark.slow
def test_the_curve_is_that_of_an_optimizer_set_so_from_that_step(resumed: dict[str, Seen]) -> None:
    configs = {f"optimizer.{name}": changed(BASE, f"optimizer.{name}") for name in RATES}
    (by_hand,) = run_distributed(1, set_by_hand, BASE, {"": BASE, **configs})
    for name, seen in by_hand.items():
        assert (seen.losses, seen.rates) == (resumed[name].losses, resumed[name].rates), name
        assert seen.weights == resumed[name].weights, name
    rates = resumed["optimizer.learning_rate"].rates
    peak = changed(BASE, "optimizer.learning_rate").optimizer.learning_rate
    least = peak * BASE.optimizer.min_learning_rate_fraction
    later = least + (peak - least) * (1 + math.cos(math.pi / 5)) / 2
    assert rates[0] == (pytest.approx(peak), pytest.approx(peak * (1 + 9 * 5 / 8)))
    assert rates[1] == (pytest.approx(later), pytest.approx(later * (1 + 9 * 4 / 8)))


SMALL_TYPES = ("training.precision=bf16", "optimizer.table_exp_avg_dtype=bf16", "optimizer.table_exp_avg_sq_dtype=bf16")


@FORKED
@pytest.mark.slow
def test_types_and_what_belongs_to_experts(imported: None, tmp_path: Path) -> None:
    small = tiny_config(*SMALL_TYPES)
    (seen,) = run_distributed(1, resume_each, tmp_path / "small", small, {"": small, "fp32": tiny_config()})
    assert seen["fp32"].said == [setting.partition("=")[0] for setting in SMALL_TYPES]
    assert seen["fp32"].losses == pytest.approx(seen[""].losses, rel=0.01)
    (field,) = OF_EXPERTS
    configs = {"": MIXTURE, field: changed(MIXTURE, field)}
    (seen,) = run_distributed(1, resume_each, tmp_path / "experts", MIXTURE, configs)
    assert seen[field].weights != seen[""].weights
    assert {rates[1] for rates in seen[""].rates} == {None}, "no table, no rate of tables"


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


# Whole runs: what is read where it acts.


def run(config: RunConfig, run_dir: Path) -> tuple[str, str]:
    """How it ended, and what it printed."""
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.training.pretrain import pretrain

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        outcome = pretrain(config, choose_plan(config, local_cluster(1)), run_dir, torch.device("cpu"))
    return outcome.value, printed.getvalue()


def start(run_dir: Path, *overrides: str) -> tuple[str, str]:
    ((outcome, printed),) = run_distributed(1, run, tiny_config(*overrides), run_dir)
    return outcome, printed


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def changes_written(run_dir: Path) -> dict[str, tuple[Any, Any, bool]]:
    events = [event for event in lines_of(run_dir / "events.jsonl") if event["event"] == "changed_setting"]
    return {event["field"]: (event["old"], event["new"], event["takes_effect"]) for event in events}


@FORKED
@pytest.mark.slow
def test_saving_and_reporting(imported: None, tmp_path: Path) -> None:
    """A run that goes on with all of ``REPORTED`` changed."""
    run_dir, fewer = tmp_path / "run", tmp_path / "fewer"
    assert start(run_dir, "training.stop_after=4")[0] == "stopped"
    assert not (run_dir / "events.jsonl").exists()
    shutil.copytree(run_dir, fewer)
    now = ("training.stop_after=7", "training.eval_interval=1", "checkpoint.interval=1", "checkpoint.keep=3")
    now = (*now, "monitor.log_interval=3", "monitor.memory_interval=1", "model.init_std=0.5")
    outcome, printed = start(run_dir, *now)
    assert outcome == "stopped"
    assert sorted(path.name for path in (run_dir / "checkpoints").glob("step_*")) == [
        f"step_{step:08d}" for step in (5, 6, 7)
    ]
    after = lines_of(run_dir / "metrics.jsonl")[4:]
    assert [record["step"] for record in after] == [5, 6, 7]
    assert all("validation/loss" in record and "memory/resident_bytes" in record for record in after)
    assert [line.split("|")[0].split()[-1] for line in printed.splitlines() if "| lr" in line] == ["5/8", "6/8"]
    written = changes_written(run_dir)
    assert written.keys() == {*(setting.partition("=")[0] for setting in now)}
    assert written["training.stop_after"] == (4, 7, True)
    assert written["model.init_std"] == (0.02, 0.5, False)
    assert printed.count("checkpoint.keep = 3 from here on, 2 before") == 1
    assert printed.count("model.init_std = 0.5 instead of 0.02 has no effect: weights come from the checkpoint") == 1
    start(fewer, *now, "training.eval_batches=1")
    assert lines_of(fewer / "metrics.jsonl")[4]["validation/loss"] != after[0]["validation/loss"]
    before = (run_dir / "events.jsonl").read_text()
    start(run_dir, *now)
    assert (run_dir / "events.jsonl").read_text() == before, "what was said once is not said again"


@FORKED
@pytest.mark.slow
def test_the_advice_after_divergence_helps(imported: None, tmp_path: Path) -> None:
    """A lower rate, from the checkpoint before: as a run that never had the higher one."""
    run_dir, calm = tmp_path / "run", tmp_path / "calm"
    limits = ("resilience.loss_window=2", "resilience.loss_spike_factor=1.5", "resilience.max_bad_steps=1")
    assert start(run_dir, *limits, "training.stop_after=4")[0] == "stopped"
    shutil.copytree(run_dir, calm)
    with pytest.raises(DivergedError, match=r"go on from it, .* with a lower optimizer\.learning_rate"):
        start(run_dir, *limits, "optimizer.learning_rate=100")
    assert start(run_dir, *limits)[0] == start(calm, *limits)[0] == "finished"
    rates = [(record["train/loss"], record["train/learning_rate"]) for record in lines_of(run_dir / "metrics.jsonl")]
    assert rates == [(r["train/loss"], r["train/learning_rate"]) for r in lines_of(calm / "metrics.jsonl")]
    assert changes_written(run_dir)["optimizer.learning_rate"] == (6e-4, 100.0, True)


@FORKED
@pytest.mark.slow
def test_a_run_that_begins_with_anothers_checkpoint(imported: None, tmp_path: Path) -> None:
    """``checkpoint.load`` and a resume are one thing."""
    run_dir, new = tmp_path / "run", tmp_path / "new"
    start(run_dir, "training.stop_after=4")
    rate = "optimizer.learning_rate=0.06"
    start(new, f"checkpoint.load={run_dir}/checkpoints", rate)
    start(run_dir, rate)
    loaded, went_on = lines_of(new / "metrics.jsonl"), lines_of(run_dir / "metrics.jsonl")[4:]
    assert [r["train/loss"] for r in loaded] == [r["train/loss"] for r in went_on]
    assert changes_written(new) == changes_written(run_dir) | {"training.stop_after": (4, 0, True)}
    assert loaded[0]["train/learning_rate"] > 0.01

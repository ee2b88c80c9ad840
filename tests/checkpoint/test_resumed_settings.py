"""Every setting that takes effect at a resume does: a rank resumes one checkpoint with one after the other changed."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ultramem_megatron.checkpoint.settings import changed_settings
from ultramem_megatron.config.at_resume import AT_RESUME, AtResume
from ultramem_megatron.config.load import to_plain
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.synthetic import SyntheticTokens
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.settings import CONFIG_IS_READ, DATA, OF_EXPERTS, PLANNED, REPORTED, changed
from ultramem_megatron.testing.tiny import EXPERTS, tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA"),
]

SAVED_STEP, MORE_STEPS = 2, 2

BASE = tiny_config("training.steps=8", "optimizer.warmup_fraction=0.375", "optimizer.clip_gradient=0.5")
"""The rate rises for three steps: a step after the second is warm-up, one is not."""
MIXTURE = tiny_config(*EXPERTS)

BUILT: dict[str, Callable[[Any], Any]] = {
    "training.recompute": lambda state: state.chunks[0].config.recompute_granularity,
    "training.micro_batch_size": lambda state: len(next(batches_of(state))),
    "memory.overlap": lambda state: state.chunks[0].memory.overlap,
    "checkpoint.async_save": lambda state: saver_of(state).beside_training,
}
"""Read from what was built; they change no number, or hardly."""
TAKES_EFFECT = [field for field, rule in AT_RESUME.items() if rule.what is AtResume.TAKES_EFFECT]
WITHOUT_EFFECT = [field for field, rule in AT_RESUME.items() if rule.what is AtResume.WITHOUT_EFFECT]
LEARNT = [
    field for field in TAKES_EFFECT if field not in {*PLANNED, *CONFIG_IS_READ, *REPORTED, *BUILT, *DATA, *OF_EXPERTS}
]
"""All others, of which the weights after some steps tell."""
RATES = [
    *("learning_rate", "min_learning_rate_fraction", "warmup_fraction", "weight_decay", "beta1", "beta2", "epsilon"),
    *("value_lr_multiplier", "value_lr_decay_fraction"),
]

TOKENS = SyntheticTokens(seq_length=32, vocab_size=256, seed=1)


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

    return SaveCheckpoints(Path("nowhere"), TOKENS.identity, state).saver


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
    saves = SaveCheckpoints(root, TOKENS.identity, state)
    take_steps(state, SAVED_STEP)
    saves.on_exit(state)
    return state


def resume_as(config: RunConfig, root: Path, groups: Any) -> Seen:
    from ultramem_megatron.training import checkpointing

    state = build(config, groups)
    before = settings_of(state)
    start = checkpointing.find_start(config, root)
    assert start is not None
    folder, manifest = checkpointing.resume(state, start, root, TOKENS)
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
def resumed(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """By field, what a run was like that resumed with another value of it; "" for the same config."""
    configs = {field: changed(BASE, field) for field in (*LEARNT, *BUILT, *WITHOUT_EFFECT)}
    root = tmp_path_factory.mktemp("resumed")
    (seen,) = run_distributed(1, resume_each, root, BASE, {"": BASE, **configs}, timeout_seconds=300)
    return seen


def test_what_takes_effect_changes_the_weights(resumed: dict[str, Seen]) -> None:
    assert resumed[""].said == []
    for field in LEARNT:
        assert resumed[field].said == [field]
        assert resumed[field].weights != resumed[""].weights, f"{field} is said to take effect, and has none"


def test_what_is_built_anew(resumed: dict[str, Seen]) -> None:
    for field in BUILT:
        assert resumed[field].said == [field]
        assert resumed[field].built[field] != resumed[""].built[field]
        assert resumed[field].losses == pytest.approx(resumed[""].losses, rel=1e-5)


def test_what_is_without_effect_changes_nothing(resumed: dict[str, Seen]) -> None:
    for field in WITHOUT_EFFECT:
        assert resumed[field] == resumed[""], field


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


def test_types_and_what_belongs_to_experts(megatron: ModuleType, tmp_path: Path) -> None:
    small = tiny_config(*SMALL_TYPES)
    (seen,) = run_distributed(1, resume_each, tmp_path / "small", small, {"": small, "fp32": tiny_config()})
    assert seen["fp32"].said == [setting.partition("=")[0] for setting in SMALL_TYPES]
    assert seen["fp32"].losses == pytest.approx(seen[""].losses, rel=0.01)
    (field,) = OF_EXPERTS
    configs = {"": MIXTURE, field: changed(MIXTURE, field)}
    (seen,) = run_distributed(1, resume_each, tmp_path / "experts", MIXTURE, configs)
    assert seen[field].weights != seen[""].weights
    assert {rates[1] for rates in seen[""].rates} == {None}, "no table, no rate of tables"

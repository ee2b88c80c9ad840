"""A few optimizer steps of the tiny model on a GPU, and a checkpoint of them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.synthetic import SyntheticTokens
from ultramem_megatron.testing.tiny import tiny_config

if TYPE_CHECKING:  # these import megatron-core
    from ultramem_megatron.data.batch import Batch
    from ultramem_megatron.parallel.groups import Groups
    from ultramem_megatron.training.state import StepResult, TrainState

pytestmark = pytest.mark.gpu

STEPS = 5
CONFIG = tiny_config()

DATA = SyntheticTokens(seq_length=32, vocab_size=256, seed=1)


@pytest.fixture(scope="module")
def groups(device: torch.device) -> "Groups":
    """The run's groups; megatron-core builds them once in a process."""
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.setup import build_run_groups

    return build_run_groups(CONFIG, choose_plan(CONFIG, local_cluster(1)), device)


def fresh_state(config: RunConfig, groups: "Groups") -> "TrainState":
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.setup import build_train_state

    return build_train_state(config, choose_plan(config, local_cluster(1)), groups)


def batches_after(config: RunConfig, steps: int) -> "Iterator[list[Batch]]":
    from ultramem_megatron.data.batch import BatchSampler
    from ultramem_megatron.data.dataset import open_training_data

    training = config.training
    sizes = {"global_batch_size": training.global_batch_size, "micro_batch_size": training.micro_batch_size}
    consumed = steps * training.global_batch_size
    return iter(BatchSampler(open_training_data(config), **sizes, dp_rank=0, dp_size=1, consumed_samples=consumed))


def take_steps(state: "TrainState", count: int) -> "list[StepResult]":
    from ultramem_megatron.training.step import train_step

    batches = batches_after(state.config, state.step)
    return [train_step(state, next(batches)) for _ in range(count)]


def repeat_batch(state: "TrainState", count: int) -> "list[StepResult]":
    """One batch again and again: its loss must fall, however small the run."""
    from ultramem_megatron.training.step import train_step

    batch = next(batches_after(state.config, 0))
    return [train_step(state, batch) for _ in range(count)]


def weights(state: "TrainState") -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in state.chunks[0].named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_lower_the_loss(groups: "Groups", precision: str) -> None:
    state = fresh_state(tiny_config(f"training.precision={precision}"), groups)
    before = weights(state)
    assert {tensor.device for tensor in before.values()} == {groups.device}
    results = repeat_batch(state, STEPS)
    assert [result.step for result in results] == list(range(1, STEPS + 1))
    assert all(math.isfinite(result.loss) and 0 < result.gradient_norm < math.inf for result in results)
    assert results[-1].loss < results[0].loss
    after = weights(state)
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    assert not unmoved, "every parameter has learnt something, the value table too"


def test_a_resumed_run_goes_on_as_it_would_have(groups: "Groups", tmp_path: Path) -> None:
    from ultramem_megatron.training.checkpointing import SaveCheckpoints, find_start, resume

    state = fresh_state(CONFIG, groups)
    saves = SaveCheckpoints(tmp_path, DATA.identity, state)
    take_steps(state, 2)
    saves.on_exit(state)
    saved = weights(state)
    expected = take_steps(state, STEPS - 2)

    resumed = fresh_state(CONFIG, groups)
    start = find_start(CONFIG, tmp_path)
    assert start is not None
    resume(resumed, start, tmp_path, DATA)
    assert resumed.step == 2
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, saved[name]), name
    # not to the bit: on a GPU the gradients of the embedding are added in any order, see ``training.deterministic``
    for one, other in zip(take_steps(resumed, STEPS - 2), expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


def test_a_deterministic_run_repeats_its_bits(groups: "Groups") -> None:
    """The whole step in a process that refuses what has no order of its own."""
    from ultramem_megatron.parallel.process import fix_orders_of_sums

    config = tiny_config("training.deterministic=true")
    mode = torch.get_deterministic_debug_mode()
    fix_orders_of_sums()
    try:
        first, second = (
            [(r.loss, r.gradient_norm) for r in take_steps(fresh_state(config, groups), STEPS)] for _ in "12"
        )
    finally:
        torch.set_deterministic_debug_mode(mode)
    assert first == second

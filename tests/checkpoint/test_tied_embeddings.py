"""Gradient buffers of several buckets, as tied embeddings on pipeline stages have them: no state of the optimizer is
lost in a checkpoint, and one that would be fails the save."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ultramem_megatron.checkpoint.verify import verify
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.testing.layouts import Curve, Layout, train_layout
from ultramem_megatron.testing.tiny import tiny_config
from ultramem_megatron.testing.tolerances import LOSS_CURVE_RELATIVE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA"),
]

CONFIG = tiny_config(
    *("model.tie_embeddings=true", "model.layers=4", "model.seq_length=16", "memory.spans=2:3"),
    *("training.global_batch_size=12", "training.micro_batch_size=2", "training.stop_after=3"),
)
ALONE = Layout("1 process", 1)
LAYOUTS = [
    Layout("PP2", 2, ("parallelism.pipeline=2",)),
    Layout("PP4", 4, ("parallelism.pipeline=4",)),
    Layout("PP2 x DP2", 4, ("parallelism.pipeline=2",)),
    Layout("DP3", 3),
]


@pytest.fixture(scope="module")
def alone(megatron: ModuleType) -> Curve:
    return train_layout(CONFIG, ALONE)


def train_and_forget_the_end(layout: Layout, root: Path) -> Curve:
    """All steps of a run, of which the checkpoint before the last step is left."""
    curve = train_layout(CONFIG, layout, save=root)
    shutil.rmtree(root / "step_00000003")
    return curve


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_tied_model_goes_on_as_if_it_had_not_stopped(alone: Curve, layout: Layout, tmp_path: Path) -> None:
    whole = train_and_forget_the_end(layout, tmp_path)
    assert max(whole.largest_difference(alone)) < LOSS_CURVE_RELATIVE
    assert verify(tmp_path / "step_00000002").damage == []
    assert train_layout(CONFIG, layout, load=tmp_path) == Curve(whole.losses[2:], whole.gradient_norms[2:])
    if layout is LAYOUTS[0]:
        elsewhere = train_layout(CONFIG, LAYOUTS[-1], load=tmp_path)
        end = Curve(alone.losses[2:], alone.gradient_norms[2:])
        assert max(elsewhere.largest_difference(end)) < LOSS_CURVE_RELATIVE


@pytest.mark.parametrize("layout", LAYOUTS[2:], ids=lambda layout: layout.name)
def test_any_number_of_buckets(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As overlapped reduction of gradients has them."""
    from megatron.core.distributed.distributed_data_parallel import _ParamAndGradBuffer

    init = _ParamAndGradBuffer.__init__

    def in_buckets(self: Any, *arguments: Any) -> None:
        init(self, *arguments[:BUCKET_SIZE_ARGUMENT], 1000, *arguments[BUCKET_SIZE_ARGUMENT + 1 :])
        assert len(self.buckets) > 3 or len(self.params) == 1

    monkeypatch.setattr(_ParamAndGradBuffer, "__init__", in_buckets)
    whole = train_and_forget_the_end(layout, tmp_path)
    assert verify(tmp_path / "step_00000002").damage == []
    assert train_layout(CONFIG, layout, load=tmp_path) == Curve(whole.losses[2:], whole.gradient_norms[2:])


BUCKET_SIZE_ARGUMENT = 5
"""Its place among the arguments behind ``self``."""


def zero_moments(optimizer_class: Any) -> tuple[str, Any]:
    gather = optimizer_class.get_parameter_state_dp_zero

    def gathered(self: Any, **named: Any) -> Any:
        state = gather(self, **named)
        state[0][next(iter(state[0]))]["exp_avg"][-40:] = 0.0
        return state

    return "get_parameter_state_dp_zero", gathered


def leave_one_out(optimizer_class: Any) -> tuple[str, Any]:
    describe = optimizer_class.sharded_param_state_fully_reshardable

    def described(self: Any, *arguments: Any, **named: Any) -> Any:
        state = describe(self, *arguments, **named)
        del state[0]["exp_avg_sq"]
        return state

    return "sharded_param_state_fully_reshardable", described


def forget_a_moment(optimizer_class: Any) -> tuple[str, Any]:
    step = optimizer_class.step_with_ready_grads

    def step_and_forget(self: Any) -> Any:
        result = step(self)
        if torch.distributed.get_rank() == 1:
            del next(iter(self.optimizer.state.values()))["exp_avg"]
        return result

    return "step_with_ready_grads", step_and_forget


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (zero_moments, r"optimizer\.state\.exp_avg\.\S+ is not what the optimizer holds"),
        (leave_one_out, r"exp_avg_sq of parameter 0 of \d+ is missing"),
        (forget_a_moment, r"rank 1: the optimizer holds exp_avg of 0 elements for a part of \d+"),
    ],
)
def test_a_state_that_would_be_lost_fails_the_save(
    megatron: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Any], tuple[str, Any]],
    reason: str,
) -> None:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    monkeypatch.setattr(DistributedOptimizer, *fault(DistributedOptimizer))
    config = tiny_config("training.stop_after=1")
    with pytest.raises(CheckpointError, match=f"no checkpoint of step 1 in .*{reason}"):
        train_layout(config, Layout("DP2", 2, ("memory.parallel_size=1",)), save=tmp_path)
    assert list(tmp_path.iterdir()) == []

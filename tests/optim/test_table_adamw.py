"""The optimizer of value tables by itself: the same as AdamW where it should be, and how far from it elsewhere."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ultramem_kernels.table_update import torch_path
from ultramem_megatron.optim.table_adamw import MOMENTS, TableAdamW
from ultramem_megatron.testing.peak_memory import largest_allocation

ROWS, WIDTH = 50, 12
RATE, BETAS, EPSILON = 0.01, (0.9, 0.95), 1e-8
BF16, FP32 = torch.bfloat16, torch.float32
EQUAL = 1e-6
"""The kernel rounds differently at the ends of a tensor, where it does not fill a vector."""


def make(
    weights: Tensor,
    *,
    lazy: bool = True,
    weight_decay: float = 0.0,
    types: tuple[torch.dtype, torch.dtype] = (FP32, FP32),
    step_in_group: bool = False,
) -> TableAdamW:
    """For a flat range of a shard; the model's weights are bf16, in ``optimizer.weights``."""
    parameter = nn.Parameter(weights.clone())
    plain = torch.optim.AdamW([parameter], lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=weight_decay)
    model = {parameter: weights.bfloat16()}
    return TableAdamW(plain, model, lazy=lazy, moment_types=types, step_in_group=step_in_group)


def run(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor]) -> Tensor:
    """The weights after all steps."""
    parameter = optimizer.param_groups[0]["params"][0]
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def run_plain(weights: Tensor, gradients: Sequence[Tensor], weight_decay: float = 0.0) -> Tensor:
    parameter = nn.Parameter(weights.clone())
    options: dict[str, Any] = {"lr": RATE, "betas": BETAS, "eps": EPSILON, "weight_decay": weight_decay}
    return run(torch.optim.AdamW([parameter], foreach=False, **options), gradients)


def sparse_gradients(steps: int, share: float) -> list[Tensor]:
    """Rows of normal numbers, each with probability ``share``; the rest are zero."""
    rows = [torch.randn(ROWS, WIDTH) * (torch.rand(ROWS, 1) < share) for _ in range(steps)]
    return [gradient.flatten() for gradient in rows]


@pytest.mark.parametrize("step_in_group", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("lazy", [True, False])
def test_it_is_adamw_where_every_row_is_touched(
    monkeypatch: pytest.MonkeyPatch, lazy: bool, weight_decay: float, step_in_group: bool
) -> None:
    monkeypatch.setattr(torch_path, "PART_ELEMENTS", 150)  # several parts, with lines that are not whole
    weights, gradients = torch.randn(ROWS * WIDTH), sparse_gradients(20, share=1.0)
    optimizer = make(weights, lazy=lazy, weight_decay=weight_decay, step_in_group=step_in_group)
    expected = run_plain(weights, gradients, weight_decay)
    found = run(optimizer, gradients)
    torch.testing.assert_close(found, expected, rtol=EQUAL, atol=EQUAL)
    (model,) = optimizer.weights.values()
    assert torch.equal(model, found.bfloat16()), "the model has the master weights, rounded once"


def test_untouched_elements_keep_weights_and_moments_to_the_bit() -> None:
    weights, gradients = torch.randn(ROWS * WIDTH), sparse_gradients(2, share=0.4)
    gradients[1][gradients[0] == 0] = 0
    gradients[1][::3] = 0  # parts of rows too
    optimizer = make(weights, weight_decay=0.1)
    first = run(optimizer, gradients[:1]).clone()
    (state,) = optimizer.state.values()
    moments = {name: state[name].clone() for name in MOMENTS}
    second = run(optimizer, gradients[1:])
    still = gradients[1] == 0
    assert torch.equal(first[gradients[0] == 0], weights[gradients[0] == 0])
    assert torch.equal(second[still], first[still])
    assert second[~still].ne(first[~still]).all()
    for name, before in moments.items():
        assert torch.equal(state[name][still], before[still])
        assert state[name][~still].ne(before[~still]).all()
    assert state["step"] == 2


def largest_ratio(step: int) -> float:
    """Most that one step moves an element, in learning rates: Cauchy-Schwarz on the sums in the two moments."""
    (beta1, beta2), terms = BETAS, BETAS[0] ** 2 / BETAS[1]
    correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
    return correction * (1 - beta1) / math.sqrt(1 - beta2) * math.sqrt((1 - terms**step) / (1 - terms))


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_distance_to_adamw_is_bounded_by_the_touches(share: float) -> None:
    """Without decay, AdamW goes on moving after a touch, by beta1 / sqrt(beta2) of the step before each time."""
    steps, weights = 100, torch.randn(ROWS * WIDTH)
    gradients = sparse_gradients(steps, share)
    touches = torch.stack([gradient != 0 for gradient in gradients]).sum(0)
    lazy, dense = run(make(weights), gradients), run_plain(weights, gradients)
    most = max(largest_ratio(step) for step in range(1, steps + 1))
    tail = 1 / (1 - BETAS[0] / math.sqrt(BETAS[1]))
    distance = (lazy - dense).abs()
    assert (distance <= RATE * most * touches * (1 + tail) * (1 + EQUAL) + EQUAL).all()
    assert ((lazy - weights).abs() <= RATE * most * touches * (1 + EQUAL) + EQUAL).all()
    assert torch.equal(distance[touches == 0], torch.zeros_like(distance[touches == 0]))
    assert distance.max() > RATE, "the two differ where rows are left out"


def test_one_late_touch_by_hand() -> None:
    """README.md says so: AdamW moves 5.8 learning rates in the steps that follow, the lazy update 0.45 at once."""
    quiet, touch = torch.zeros(WIDTH), torch.ones(WIDTH)
    gradients = [quiet] * 300 + [touch] + [quiet] * 200
    start = torch.zeros(WIDTH)
    assert float(-run(make(start), gradients)[0]) / RATE == pytest.approx(0.1 / math.sqrt(0.05), rel=1e-4)
    tail = 1 / (1 - 0.9 / math.sqrt(0.95))
    assert float(-run_plain(start, gradients)[0]) / RATE == pytest.approx(tail * 0.1 / math.sqrt(0.05), rel=1e-4)


def test_decay_of_untouched_rows_is_what_adamw_has_more() -> None:
    quiet = [torch.zeros(WIDTH)] * 50
    start = torch.ones(WIDTH)
    assert torch.equal(run(make(start, weight_decay=0.1), quiet), start)
    torch.testing.assert_close(run_plain(start, quiet, 0.1), torch.full((WIDTH,), (1 - RATE * 0.1) ** 50))


@pytest.mark.parametrize("lazy", [True, False])
def test_bf16_moments_follow_fp32_moments(lazy: bool) -> None:
    """Each moment is off by at most half a bf16 digit a step, which the next steps forget."""
    weights, gradients = torch.randn(ROWS * WIDTH), sparse_gradients(50, share=0.5)
    narrow = make(weights, lazy=lazy, types=(BF16, BF16))
    moved = run(make(weights, lazy=lazy), gradients) - weights
    moved_narrow = run(narrow, gradients) - weights
    (state,) = narrow.state.values()
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == BF16
    assert not torch.equal(moved, moved_narrow)
    assert (moved - moved_narrow).norm() < 0.02 * moved.norm()


@pytest.mark.parametrize("types", [(FP32, FP32), (BF16, FP32), (BF16, BF16)], ids=str)
def test_a_loaded_state_goes_on_to_the_bit(types: tuple[torch.dtype, torch.dtype]) -> None:
    weights, gradients = torch.randn(ROWS * WIDTH), sparse_gradients(6, share=0.5)
    undisturbed, saved = make(weights, types=types), make(weights, types=types)
    expected, half = run(undisturbed, gradients), run(saved, gradients[:3])
    loaded = make(half, types=types)
    loaded.load_state_dict(saved.state_dict())
    (state,) = loaded.state.values()
    assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == types
    assert torch.equal(run(loaded, gradients[3:]), expected)


def test_what_is_not_a_number_is_not_lost() -> None:
    """A gradient that overflowed must not pass for one that is not there."""
    gradients = torch.zeros(ROWS, WIDTH)
    gradients[[0, 3, 4, 49], [0, 11, 5, 11]] = torch.tensor([1.0, -1e-30, math.nan, math.inf])
    optimizer = make(torch.zeros(ROWS * WIDTH))
    moved = run(optimizer, [gradients.flatten()]).view(ROWS, WIDTH) != 0
    assert torch.equal(moved, gradients != 0)


@pytest.mark.parametrize("types", [(FP32, FP32), (BF16, BF16)], ids=str)
@pytest.mark.parametrize("lazy", [True, False])
def test_a_step_allocates_nothing_of_the_size_of_the_table(
    monkeypatch: pytest.MonkeyPatch, lazy: bool, types: tuple[torch.dtype, torch.dtype]
) -> None:
    monkeypatch.setattr(torch_path, "PART_ELEMENTS", 2**12)
    rows = 10_000
    optimizer = make(torch.randn(rows * WIDTH), lazy=lazy, types=types)
    gradient = torch.randn(rows * WIDTH)
    run(optimizer, [gradient])
    optimizer.param_groups[0]["params"][0].grad = gradient
    assert largest_allocation(optimizer.step) <= 4 * 2**12 < gradient.nbytes // 4

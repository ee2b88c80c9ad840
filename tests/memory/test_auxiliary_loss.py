"""The penalty on a Tucker core's lesser singular values, and how it reaches the gradients."""

import pytest
import torch

from ultramem_megatron.memory.auxiliary_loss import attach_loss, core_penalty
from ultramem_megatron.testing.reference_layer import auxiliary_loss
from ultramem_megatron.testing.tolerances import assert_agrees


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
@pytest.mark.parametrize(("weight", "margin"), [(1e-3, 0.15), (0.5, 0.0), (2.0, 100.0)])
def test_value_and_gradient_equal_the_oracles(rank: int, weight: float, margin: float) -> None:
    core = torch.rand(3, 2, rank, rank, requires_grad=True)
    wide = core.detach().double().requires_grad_()
    found, expected = core_penalty(core, weight, margin), auxiliary_loss(wide, weight, margin)
    assert found.dtype is torch.float32 and found.shape == ()
    assert_agrees(found, expected, computed_in=torch.float32)
    found.backward()
    expected.backward()
    assert core.grad is not None and wide.grad is not None
    assert_agrees(core.grad, wide.grad, computed_in=torch.float32)
    free = rank == 1 or margin == 100.0
    assert (found.item() == 0) is free and (core.grad.count_nonzero() == 0).item() is free


def test_by_hand() -> None:
    """Singular values 3, 1, 0.5 of the sum, margin 0.25: weight / 2 * (0.75^2 + 0.25^2)."""
    core = torch.diag(torch.tensor([3.0, 1.0, 0.5])).repeat(1, 2, 1, 1) / 2
    assert core_penalty(core, 0.8, 0.25).item() == pytest.approx(0.4 * (0.5625 + 0.0625))


@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_attached_loss_gets_the_scale_and_leaves_the_rest_alone(scale: float) -> None:
    x, core = torch.randn(4, 3, requires_grad=True), torch.rand(1, 2, 3, 3, requires_grad=True)
    (alone,) = torch.autograd.grad(core_penalty(core, 1.0, 0.0), core)
    out = attach_loss(x * 2, core_penalty(core, 1.0, 0.0), scale)
    assert torch.equal(out, x * 2)
    cotangent = torch.randn(4, 3)
    out.backward(cotangent)
    assert torch.equal(x.grad, 2 * cotangent)  # type: ignore[arg-type]
    torch.testing.assert_close(core.grad, scale * alone)


def test_attached_loss_of_rank_one_has_a_zero_gradient() -> None:
    core = torch.rand(2, 2, 1, 1, requires_grad=True)
    attach_loss(torch.ones(1, requires_grad=True), core_penalty(core, 1.0, 0.0), 1.0).backward()
    assert core.grad is not None and core.grad.count_nonzero() == 0

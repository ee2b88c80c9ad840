"""Gradients against finite differences: along random directions in `make test`, entry by entry in `make test-deep`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck

from ultramem_megatron.testing.budget import is_deep

STEP = 1e-6
"""Length of a step along a direction; no entry moves further."""
ROUNDING = 1e-7
"""Of the largest slope along the direction: what a difference of two float64 values, divided by two steps, errs by."""


def check_gradients(function: Callable[..., Any], inputs: Sequence[Tensor]) -> bool:
    """``torch.autograd.gradcheck``, whose cost grows with the number of entries, or what finds the same in few calls.

    Along a direction that moves all entries of an input, a wrong derivative of any of them shows. gradcheck's own fast
    mode looks at undefined gradients and repeated calls as well, but forgives much in a single entry, so the slopes
    are compared once more, and closer.

    Args:
        function: Of the inputs, to one tensor or several; smooth within a step of them.
        inputs: In float64. Those that require gradients are checked.

    Raises:
        AssertionError: A slope is not what its gradient says.
        GradcheckError: gradcheck found a fault.
    """
    if is_deep():
        return gradcheck(function, inputs)
    gradients, value = _pulled_back(function, inputs)
    for number, gradient in gradients.items():
        _compare(number, gradient, inputs, value)
    return gradcheck(function, inputs, fast_mode=True)


def _pulled_back(
    function: Callable[..., Any], inputs: Sequence[Tensor]
) -> tuple[dict[int, Tensor], Callable[[Sequence[Tensor]], Tensor]]:
    """Gradients of a random sum of all outputs by the number of the input, and that sum."""
    generator = torch.Generator().manual_seed(0)
    cotangents: list[Tensor] = []

    def value(leaves: Sequence[Tensor]) -> Tensor:
        found = function(*leaves)
        outputs = [x for x in ((found,) if isinstance(found, Tensor) else found) if x.is_floating_point()]
        if not cotangents:
            cotangents.extend(torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in outputs)
        terms = [(x * cotangent).sum() for x, cotangent in zip(outputs, cotangents, strict=True)]
        return torch.stack(terms).sum()

    wanted = [number for number, x in enumerate(inputs) if x.requires_grad]
    leaves = [inputs[number] for number in wanted]
    found = torch.autograd.grad(value(inputs), leaves, allow_unused=True, materialize_grads=True)
    return dict(zip(wanted, found, strict=True)), value


def _compare(number: int, gradient: Tensor, inputs: Sequence[Tensor], value: Callable[..., Tensor]) -> None:
    """The slope along two directions of length 1."""
    generator = torch.Generator().manual_seed(number)
    for _ in range(2):
        direction = torch.randn(gradient.shape, dtype=torch.float64, generator=generator)
        direction /= direction.norm()
        moved = [
            [*inputs[:number], (inputs[number] + step * direction), *inputs[number + 1 :]] for step in (STEP, -STEP)
        ]
        with torch.no_grad():
            slope = float(value(moved[0]) - value(moved[1])) / (2 * STEP)
        expected = float((gradient * direction).sum())
        allowed = ROUNDING * max(1.0, float(gradient.norm()))
        assert abs(slope - expected) <= allowed, (
            f"input {number} of shape {tuple(gradient.shape)}: its gradient says {expected:.9g} along a random "
            f"direction, finite differences {slope:.9g}"
        )

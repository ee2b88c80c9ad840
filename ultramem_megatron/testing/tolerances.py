"""How close is equal: one place for tolerances, so that a loosened one is seen."""

import math

import torch
from torch import Tensor

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
"""Largest relative error of rounding one number to the type, to nearest."""

SAFETY = 16.0
"""Allowance for the operations around a sum (norms, products of scores); found to hold with margin on CPU."""

LOSS_CURVE_RELATIVE = 1e-5
"""Two layouts of one fp32 run agree to this in every loss of 20 steps; equal layouts agree to the bit."""


def tolerance(reference: Tensor, computed_in: torch.dtype, summed_terms: int = 1) -> float:
    """Absolute error allowed in any element of a result whose true value is ``reference``.

    Rounding errors of a sum grow with the root of its terms, and are relative to the terms, not to a sum that
    cancels; so the scale is the largest element of the reference, and an element near zero gets the same allowance.

    Args:
        reference: The exact result, any shape, float64.
        computed_in: The type of the narrowest step on the way.
        summed_terms: Terms of the longest sum that was rounded in that type.
    """
    if reference.numel() == 0:
        return 0.0
    scale = float(reference.detach().abs().max())
    return SAFETY * UNIT_ROUNDOFF[computed_in] * math.sqrt(summed_terms) * max(scale, torch.finfo(torch.float32).tiny)


def assert_agrees(actual: Tensor, reference: Tensor, *, computed_in: torch.dtype, summed_terms: int = 1) -> None:
    """Fail unless shapes are equal and every element lies within ``tolerance`` of the reference.

    Args:
        actual: The result under test, any floating type.
        reference: The exact result, float64.
        computed_in: See ``tolerance``.
        summed_terms: See ``tolerance``.

    Raises:
        AssertionError: With the worst element, both values and the allowance. NaN never agrees.
    """
    assert actual.shape == reference.shape, f"shape {tuple(actual.shape)} should be {tuple(reference.shape)}"
    if reference.numel() == 0:
        return
    actual64, reference64 = actual.detach().cpu().double(), reference.detach().cpu().double()
    allowed = tolerance(reference64, computed_in, summed_terms)
    error = (actual64 - reference64).abs().nan_to_num(nan=math.inf)
    worst = int(error.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    assert float(error.flatten()[worst]) <= allowed, (
        f"element {index}: {actual64.flatten()[worst]:.9g} against {reference64.flatten()[worst]:.9g}, "
        f"off by {error.flatten()[worst]:.3g}, allowed {allowed:.3g}; {int((error > allowed).sum())} of "
        f"{error.numel()} elements are off"
    )

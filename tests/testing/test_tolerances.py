"""assert_agrees lets rounding pass, and nothing larger."""

import math

import pytest
import torch

from ultramem_megatron.testing.tolerances import UNIT_ROUNDOFF, assert_agrees, tolerance


@pytest.mark.parametrize("dtype", list(UNIT_ROUNDOFF), ids=str)
def test_roundoff_is_that_of_the_type(dtype: torch.dtype) -> None:
    assert UNIT_ROUNDOFF[dtype] == torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rounded_sum_passes_and_a_lost_term_does_not(dtype: torch.dtype) -> None:
    terms = torch.randn(64, 33, dtype=torch.float64)
    total = torch.zeros(33, dtype=dtype)
    for row in terms:
        total = total + row.to(dtype)
    assert_agrees(total, terms.sum(0), computed_in=dtype, summed_terms=64)
    if dtype is torch.float32:
        with pytest.raises(AssertionError, match=r"elements are off"):
            assert_agrees(total, terms[:-1].sum(0), computed_in=dtype, summed_terms=64)


def test_the_worst_element_is_named() -> None:
    reference = torch.ones(2, 3, dtype=torch.float64)
    actual = reference.clone()
    actual[1, 2] = 1.25
    with pytest.raises(AssertionError, match=r"element \(1, 2\): 1.25 against 1, off by 0.25.*1 of 6 elements"):
        assert_agrees(actual, reference, computed_in=torch.float32)


def test_nan_shape_and_emptiness() -> None:
    reference = torch.ones(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="nan against 1"):
        assert_agrees(torch.tensor([1.0, math.nan, 1.0]), reference, computed_in=torch.bfloat16)
    with pytest.raises(AssertionError, match=r"shape \(1, 3\) should be \(3,\)"):
        assert_agrees(reference.unsqueeze(0), reference, computed_in=torch.float32)
    with pytest.raises(AssertionError):
        assert_agrees(reference, reference * math.nan, computed_in=torch.float32)
    assert_agrees(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.float64), computed_in=torch.float32)


def test_allowance_grows_with_the_root_of_terms_and_with_the_scale() -> None:
    reference = torch.tensor([1.0, -2.0], dtype=torch.float64)
    one = tolerance(reference, torch.float32)
    assert tolerance(reference, torch.float32, summed_terms=4) == pytest.approx(2 * one)
    assert tolerance(10 * reference, torch.float32) == pytest.approx(10 * one)

"""Both stages of retrieval on a CPU choose what their references do, ties included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramem_kernels import selection
from ultramem_kernels.arguments import ArgumentError
from ultramem_kernels.candidates import best_candidates, best_candidates_reference
from ultramem_kernels.grid_top_m import grid_top_m, grid_top_m_reference
from ultramem_kernels.selection import top_m, top_m_reference


@settings(max_examples=60)
@given(
    rows=st.integers(0, 5),
    n=st.integers(1, 300),
    share=st.floats(0, 1),
    levels=st.sampled_from([1, 2, 7, 2**24]),
    seed=st.integers(0, 99),
)
def test_top_m_is_that_of_a_stable_sort(rows: int, n: int, share: float, levels: int, seed: int) -> None:
    """With one level all numbers are equal."""
    m = max(1, round(share**3 * n))
    x = torch.randint(levels, (rows, n), generator=torch.Generator().manual_seed(seed)).float() - levels / 2
    assert torch.equal(top_m(x, m), top_m_reference(x, m))


def test_top_m_of_numbers_with_a_rule_of_their_own() -> None:
    least = 2.0**-149
    x = torch.tensor([[0.0, -0.0, least, -least, torch.inf, -torch.inf, -0.0, 1.0, torch.nan]])
    for m in range(1, 10):
        assert torch.equal(top_m(x, m), top_m_reference(x, m))


def test_top_m_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "PART_ELEMENTS", 64)
    x = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(top_m(x, 5), top_m_reference(x, 5))
    assert torch.equal(top_m(x.t(), 3), top_m_reference(x.t(), 3)), "rows that do not lie together"
    assert torch.equal(top_m(x.double(), 5), top_m_reference(x.double(), 5))


@pytest.mark.parametrize(("side", "m"), [(5, 5), (150, 13), (257, 1)])
def test_candidates_are_those_of_the_reference(side: int, m: int) -> None:
    scores, direction = torch.randn(4, 2, 6, side), torch.randn(4, 2)
    found = best_candidates(scores, direction, m)
    expected = best_candidates_reference(scores, direction, m)
    assert torch.equal(found.sort(dim=2).values, expected.sort(dim=2).values)


@pytest.mark.parametrize("components", [1, 2, 3])
def test_places_of_the_grid_are_those_of_the_reference(components: int) -> None:
    rows, columns = torch.randn(2, 5, 3, components, 9).unbind(0)
    core = torch.randn(3, components, components)
    found, expected = grid_top_m(rows, columns, core, 11), grid_top_m_reference(rows, columns, core, 11)
    assert torch.equal(found.sort(dim=2).values, expected.sort(dim=2).values)


def test_operators_are_well_formed() -> None:
    torch.library.opcheck(torch.ops.ultramem.best_candidates.default, (torch.randn(2, 2, 3, 20), torch.randn(2, 2), 4))
    sides = torch.randn(2, 3, 2, 2, 5).unbind(0)
    torch.library.opcheck(torch.ops.ultramem.grid_top_m.default, (*sides, torch.randn(2, 2, 2), 4))


def test_bad_arguments_are_named() -> None:
    scores, direction = torch.randn(2, 2, 3, 20), torch.randn(2, 2)
    with pytest.raises(ArgumentError, match="m is 21; expected 1 to 20, the keys of a side"):
        best_candidates(scores, direction, 21)
    with pytest.raises(ArgumentError, match=r"scores_BrTS is torch\.bfloat16; expected torch\.float32"):
        best_candidates(scores.bfloat16(), direction, 2)
    with pytest.raises(ArgumentError, match=r"core_Hrr has shape \[2, 2\]; expected \[2, 2, 2\]"):
        grid_top_m(torch.randn(3, 2, 2, 5), torch.randn(3, 2, 2, 5), torch.randn(2, 2), 4)

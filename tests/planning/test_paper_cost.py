"""The paper's formulas: its table of volumes, and where they break even."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramem_megatron.planning.paper_cost import (
    paper_break_even_value_dim,
    paper_dimension_wise_bytes,
    paper_number_wise_bytes,
)
from ultramem_megatron.units import MIB


@pytest.mark.parametrize(
    ("value_dim", "picks", "ranks", "number_wise", "dimension_wise"),
    [
        (192, 32, 8, 10_864, 1_680),
        (512, 32, 8, 28_784, 2_240),
        (768, 70, 8, 94_325, 4_284),
        (1024, 84, 8, 150_822, 5_320),
        (1024, 84, 64, 169_674.75, 33_768),
        (1024, 84, 512, 172_031.34, 259_588),
    ],
)
def test_the_papers_volumes_per_token(
    value_dim: int, picks: int, ranks: int, number_wise: float, dimension_wise: float
) -> None:
    assert paper_number_wise_bytes(1, picks, value_dim, ranks) == pytest.approx(number_wise, abs=0.0051)
    assert paper_dimension_wise_bytes(1, picks, value_dim, ranks) == pytest.approx(dimension_wise, abs=0.0051)


@pytest.mark.parametrize(
    ("ranks", "number_wise", "dimension_wise", "with_expansion_and_cores"),
    [
        (8, 589.15, 20.78, 46.38),
        (64, 662.79, 131.91, 196.88),
        (256, 670.68, 510.00, 701.25),
        (512, 672.0, 1014.02, 1373.31),
    ],
)
def test_the_papers_volumes_at_4096_tokens(
    ranks: int, number_wise: float, dimension_wise: float, with_expansion_and_cores: float
) -> None:
    assert paper_number_wise_bytes(4096, 84, 1024, ranks) / MIB == pytest.approx(number_wise, abs=0.0051)
    assert paper_dimension_wise_bytes(4096, 84, 1024, ranks) / MIB == pytest.approx(dimension_wise, abs=0.0051)
    extended = paper_dimension_wise_bytes(4096, 84, 1024, ranks, expansion=4, cores=2)
    assert extended / MIB == pytest.approx(with_expansion_and_cores, abs=0.0051)


@pytest.mark.parametrize(
    ("picks", "expansion", "cores", "break_even"),
    [
        (16, 1, 1, [4.3, 10.7, 23.5, 49.1, 100.3, 202.7, 407.5, 817.1, 1636.3, 3274.7]),
        (32, 1, 1, [4.1, 10.3, 22.7, 47.5, 97.0, 196.1, 394.3, 790.7, 1583.5, 3169.0]),
        (84, 1, 1, [4.0, 10.1, 22.3, 46.6, 95.1, 192.3, 386.6, 775.2, 1552.5, 3107.0]),
        (84, 4, 2, [6.3, 14.7, 31.5, 65.1, 132.3, 266.7, 535.5, 1073.1, 2148.3, 4298.7]),
    ],
)
def test_break_even_widths(picks: int, expansion: int, cores: int, break_even: list[float]) -> None:
    found = [paper_break_even_value_dim(picks, 2**power, expansion, cores) for power in range(1, 11)]
    assert found == pytest.approx(break_even, abs=0.051)


@pytest.mark.parametrize(("value_dim", "picks", "ranks"), [(512, 32, 166), (768, 70, 253), (1024, 84, 338)])
def test_break_even_ranks(value_dim: int, picks: int, ranks: int) -> None:
    """Dimension-wise still wins at the rank count given, and no longer some ranks later."""
    assert paper_break_even_value_dim(picks, ranks - 1) < value_dim < paper_break_even_value_dim(picks, ranks + 1)


@given(picks=st.integers(5, 200), ranks=st.integers(2, 1024), expansion=st.integers(1, 4), cores=st.integers(1, 4))
def test_volumes_are_equal_at_the_break_even(picks: int, ranks: int, expansion: int, cores: int) -> None:
    width = paper_break_even_value_dim(picks, ranks, expansion, cores)
    below, above = math.floor(width), math.ceil(width) + 1
    for value_dim, dimension_wise_is_dearer in ((below, True), (above, False)):
        number_wise = paper_number_wise_bytes(1, picks, value_dim, ranks)
        dimension_wise = paper_dimension_wise_bytes(1, picks, value_dim, ranks, expansion, cores)
        assert (dimension_wise >= number_wise * (1 - 1e-12)) is dimension_wise_is_dearer


def test_few_picks_never_favour_dimension_wise() -> None:
    assert paper_break_even_value_dim(1, 8) == math.inf
    assert paper_break_even_value_dim(4, 8, expansion=4) == math.inf

"""Picks that prefer some rows: distinct rows among them, and how unevenly the owners of rows are loaded.

A skew is the exponent s of Zipf's law: the i-th most popular row is picked in proportion to i ** -s; 0 is uniform.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

from ultramem_megatron.errors import PlanError

_EXACT_ROWS = 256
"""So many of the most popular rows are counted one by one ..."""
_BIN_GROWTH = 1.05
"""... the others in bins that grow by this factor, each row like the bin's middle."""


MOST_SKEW = 5.0
"""Beyond it all picks go for a handful of rows."""


def check_exponent(zipf_exponent: float) -> float:
    """The exponent, if it can be one.

    Raises:
        PlanError: It is negative, no number, or so large that the model means nothing.
    """
    if not 0 <= zipf_exponent <= MOST_SKEW:
        raise PlanError(f"a skew of {zipf_exponent:g} cannot be; Zipf exponents lie from 0 (uniform) to {MOST_SKEW:g}")
    return zipf_exponent


@lru_cache(maxsize=4096)  # asked for the same few numbers by every candidate
def expected_distinct(draws: float, kinds: int, zipf_exponent: float = 0.0) -> float:
    """Distinct kinds among so many draws: the sum over kinds of 1 - (1 - p) ** draws, p the kind's share of the draws.

    The chance that some draw hits a kind; the occupancy problem of any textbook on probability.

    Args:
        draws: Made independently.
        kinds: Of them; for picks, the rows N of a table.
        zipf_exponent: s.
    """
    if zipf_exponent == 0:
        return _chance_of(draws, 1 / kinds) * kinds
    total = sum(count * weight for count, weight in _bins(kinds, zipf_exponent))
    return sum(count * _chance_of(draws, weight / total) for count, weight in _bins(kinds, zipf_exponent))


@lru_cache(maxsize=4096)
def top_row_fraction(num_rows: int, zipf_exponent: float, picks: int) -> float:
    """The most popular row's share of the picks: at most 1 of K, because a token's picks are mostly distinct."""
    total = sum(count * weight for count, weight in _bins(num_rows, zipf_exponent))
    return min(1 / picks, 1 / total)


def busiest_owner_factor(requests: float, owners: int, top_fraction: float) -> float:
    """Load of the busiest owner of rows over the mean, rows being dealt to owners regardless of popularity.

    The owner of the most popular row has its share on top of the mean; chance adds the largest of P deviations, which
    is near sqrt(2 ln P) standard deviations of a Poisson count (David and Nagaraja, Order Statistics, section 10.5).

    Args:
        requests: What one owner gets on average.
        owners: P.
        top_fraction: Of all requests that go for the most popular row.
    """
    if owners == 1 or requests <= 0:
        return 1.0
    return 1 + top_fraction * (owners - 1) + math.sqrt(2 * math.log(owners) / requests)


def _chance_of(draws: float, fraction: float) -> float:
    """That a kind with this share of the draws is among so many."""
    if fraction >= 1:
        return min(draws, 1)
    return -math.expm1(draws * math.log1p(-fraction))  # exact for small shares, where 1 - p rounds


def _bins(num_rows: int, zipf_exponent: float) -> Iterator[tuple[int, float]]:
    """(rows, weight of one of them), most popular first."""
    first = 1
    while first <= num_rows:
        last = first if first < _EXACT_ROWS else min(num_rows, math.ceil(first * _BIN_GROWTH))
        yield last - first + 1, math.sqrt(first * last) ** -zipf_exponent
        first = last + 1

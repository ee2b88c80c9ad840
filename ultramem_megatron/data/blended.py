"""Several sources read as one, in fixed proportions."""

import hashlib
from fractions import Fraction

from torch import Tensor

from ultramem_megatron.data.token_source import TokenSource


class BlendedSource(TokenSource):
    """Sources take turns by their shares; which is whose turn is reckoned from the number of a sample alone.

    Two sources share like this: of the first n >= 2 samples, the first source has floor(share * (n - 1)) + 1; that is
    what giving each sample to the source that is furthest behind its share comes to. More than two are halved: the
    first half of them shares with the second as two sources would, and each half shares out what it gets in the same
    way. No source is ever further from its share than one sample for each halving.

    Args:
        sources: At least one. Their order matters: sort them by name.
        weights: Positive, one a source; only their ratios count.
    """

    def __init__(self, sources: list[TokenSource], weights: list[float]) -> None:
        assert len(sources) == len(weights) > 0
        self._sources = sources
        self._shares = [weight / sum(weights) for weight in weights]
        self._first_half = _first_halves(weights)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        source, number = self.locate(i)
        return self._sources[source][number]

    def locate(self, i: int) -> tuple[int, int]:
        """(source, number within that source) of sample ``i``, at the same cost for every ``i``."""
        low, high, number = 0, len(self._sources), i
        while high - low > 1:
            middle, share = (low + high) // 2, self._first_half[low, high]
            before = _taken(share, number)
            if _taken(share, number + 1) > before:
                high, number = middle, before
            else:
                low, number = middle, number - before
        return low, number

    @property
    def shares(self) -> list[float]:
        """Of each source, adding up to 1."""
        return self._shares

    @property
    def fingerprint(self) -> str:
        parts = [f"{s.fingerprint}:{w!r}" for s, w in zip(self._sources, self._shares, strict=True)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _first_halves(weights: list[float]) -> dict[tuple[int, int], Fraction]:
    """Part of the sources [low, high) -> share of its first half, exact: rounded ones go wrong far from the start."""
    found: dict[tuple[int, int], Fraction] = {}
    parts = [(0, len(weights))]
    while parts:
        low, high = parts.pop()
        if high - low > 1:
            middle = (low + high) // 2
            first, second = (sum(map(Fraction, weights[a:b])) for a, b in ((low, middle), (middle, high)))
            found[low, high] = Fraction(first, first + second)
            parts += [(low, middle), (middle, high)]
    return found


def _taken(share: Fraction, samples: int) -> int:
    """How many of the first ``samples`` the first of two sources has, when it is due ``share`` of all."""
    if samples < 2:
        return samples if 2 * share >= 1 else 0
    return share.numerator * (samples - 1) // share.denominator + 1

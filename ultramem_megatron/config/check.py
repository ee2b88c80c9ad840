"""The checks that most fields need. An error names path, value, rule and remedy."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from ultramem_megatron.errors import ConfigError, shown

_SEARCHED_DIVISORS = 1_000_000
MOST_PATH_BYTES, MOST_NAME_BYTES = 4096, 255
"""What Linux takes (PATH_MAX, NAME_MAX)."""


@dataclass(frozen=True, slots=True)
class Between:
    """The range of a number field, which stands in its type: ``layers: Annotated[int, Between(1, 4096)]``. So wide that
    no run which makes sense is outside, and so narrow that one at its end does not crash or wait for ever."""

    least: float
    most: float
    least_means: str = ""
    """What the least value stands for, if it is no number like the others."""

    def check(self, path: str, value: float) -> None:
        """Refuse what is outside.

        Raises:
            ConfigError: With path, value and range.
        """
        if self.least > 0:
            require_positive(path, value)
        if not self.least <= value <= self.most:
            means = f" ({self.least_means})" if self.least_means else ""
            raise ConfigError(
                f"{path} = {_number(value)} must lie between {_number(self.least)}{means} and {_number(self.most)}"
            )


def _number(value: float) -> str:
    return shown(value) if isinstance(value, int) else f"{value:g}"


MOST_STEPS = 10**9
"""Any count of optimizer steps."""

Steps = Annotated[int, Between(1, MOST_STEPS)]
StepsOrNever = Annotated[int, Between(0, MOST_STEPS, "never")]
Share = Annotated[float, Between(0, 1)]
Width = Annotated[int, Between(1, 2**20)]
Seconds = Annotated[float, Between(1, 30 * 86_400)]
SecondsOrNever = Annotated[float, Between(0, 30 * 86_400, "never")]


@lru_cache  # of a section's type
def ranges_of(section: type) -> Mapping[str, Between]:
    """The range of each number field of a section, by its name; of a mapping to numbers, that of each."""
    found = {}
    for name, hint in get_type_hints(section, include_extras=True).items():
        annotated = [part for part in (hint, *get_args(hint)) if get_origin(part) is Annotated]
        marks = [mark for part in annotated for mark in get_args(part) if isinstance(mark, Between)]
        if marks:
            found[name] = marks[0]
    return found


def require_ranges(name: str, section: object) -> None:
    """Refuse a section with a number outside of its range."""
    ranges = ranges_of(type(section))  # type: ignore[arg-type]  # mypy: a class whose instances have __hash__ has none
    for field, between in ranges.items():
        value = getattr(section, field)
        for path, number in _numbers(f"{name}.{field}", value):
            between.check(path, number)


def _numbers(path: str, value: Any) -> list[tuple[str, float]]:
    return [(f"{path}.{key}", number) for key, number in value.items()] if isinstance(value, dict) else [(path, value)]


def require_path(path: str, value: str) -> None:
    """Refuse what cannot be the name of a file or folder."""
    encoded = os.fsencode(value)
    longest = max(map(len, encoded.split(b"/")))
    if len(encoded) > MOST_PATH_BYTES or longest > MOST_NAME_BYTES:
        raise ConfigError(
            f"{path} = {shown(value)} is no path: it has {len(encoded)} bytes and a name of {longest}; "
            f"{MOST_PATH_BYTES} and {MOST_NAME_BYTES} are the most, name a shorter one"
        )


def require_positive(path: str, value: int | float) -> None:
    """Refuse zero and below, and NaN."""
    if not value > 0:
        raise ConfigError(f"{path} = {shown(value)} must be greater than 0; set a positive value")


def require_divides(divisor_path: str, divisor: int, path: str, value: int) -> None:
    """Refuse a ``divisor`` that leaves a rest of ``value``; name the nearest divisors."""
    if divisor <= 0 or value % divisor:
        lower = [d for d in range(1, min(math.isqrt(value), _SEARCHED_DIVISORS) + 1) if value % d == 0]
        divisors = sorted({*lower, *(value // d for d in lower)})
        nearest = sorted(divisors, key=lambda d: abs(d - divisor))[:4]
        raise ConfigError(
            f"{divisor_path} = {divisor} must divide {path} = {value}; "
            f"near it these do: {', '.join(map(str, sorted(nearest)))}"
        )

"""The two checks that most fields need. An error names path, value, rule and remedy."""

import math

from ultramem_megatron.errors import ConfigError

_SEARCHED_DIVISORS = 1_000_000


def require_positive(path: str, value: int | float) -> None:
    """Refuse zero and below, and NaN."""
    if not value > 0:
        raise ConfigError(f"{path} = {value} must be greater than 0; set a positive value")


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

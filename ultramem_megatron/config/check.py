"""The two checks that most fields need. An error names path, value, rule and remedy."""

from ultramem_megatron.errors import ConfigError


def require_positive(path: str, value: int | float) -> None:
    """Refuse zero and below."""
    if value <= 0:
        raise ConfigError(f"{path} = {value} must be greater than 0; set a positive value")


def require_divides(divisor_path: str, divisor: int, path: str, value: int) -> None:
    """Refuse a ``divisor`` that leaves a rest of ``value``; name the nearest divisors."""
    if divisor <= 0 or value % divisor:
        divisors = [d for d in range(1, value + 1) if value % d == 0]
        nearest = sorted(divisors, key=lambda d: abs(d - divisor))[:4]
        raise ConfigError(
            f"{divisor_path} = {divisor} must divide {path} = {value}; "
            f"near it these do: {', '.join(map(str, sorted(nearest)))}"
        )

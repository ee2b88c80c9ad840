"""A plain value, as YAML gives it -> a value of the type that its field has."""

import difflib
import math
import re
import unicodedata
from enum import StrEnum
from typing import Any, get_args, get_origin

from ultramem_megatron.errors import ConfigError, shown

MOST_BYTES = 4096
"""Of a text field."""
_WHOLE = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_REAL = re.compile(r"[+-]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_MARKS = ("${", "???")
_HIDDEN = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's control characters, halves of pairs, and separators of lines and paragraphs."""


def typed(path: str, hint: Any, value: Any) -> Any:
    """``value`` as ``hint`` has it: bool, int, float, str, a StrEnum, or dict[str, float].

    Args:
        path: Names the field in errors.
        hint: The type of the field, without annotations.
        value: From YAML.

    Raises:
        ConfigError: It is of another type, and not written as one of this type.
    """
    if get_origin(hint) is dict:
        return _mapping(path, get_args(hint)[1], value)
    if issubclass(hint, StrEnum):
        return _named(path, hint, value)
    return {bool: _boolean, int: _whole, float: _real, str: _text}[hint](path, value)


def _boolean(path: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = _WORDS.get(value.lower()) if isinstance(value, str) else None
    if word is None:
        raise _wrong_type(path, value, "true or false")
    return word


def _whole(path: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value) and len(value) <= 100:
        return int(value)
    real = _as_real(value)
    if real is not None and real.is_integer():  # 1e3, 10.0
        return int(real)
    raise _wrong_type(path, value, "a whole number")


def _real(path: str, value: Any) -> float:
    real = _as_real(value)
    if real is None:
        raise _wrong_type(path, value, "a number")
    if not math.isfinite(real):
        raise ConfigError(f"{path} = {real} must be a finite number")
    return real


def _as_real(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if not isinstance(value, str) or len(value) > 100:
        return None
    if value.lower() in ("nan", ".nan", "inf", ".inf", "-inf", "-.inf"):
        return float(value.replace(".", ""))
    return float(value) if _REAL.fullmatch(value) else None


def _text(path: str, value: Any) -> str:
    if type(value) is int:
        return str(value)
    if isinstance(value, bool | float):
        raise ConfigError(f"{path} = {shown(value)} must be text; write it in quotes")
    if not isinstance(value, str):
        raise _wrong_type(path, value, "text; ~ and an empty value are YAML's null" if value is None else "text")
    if any(mark in value for mark in _MARKS):
        raise ConfigError(f"{path} = {shown(value)} is a reference; settings are plain, write its value")
    if any(unicodedata.category(character) in _HIDDEN for character in value):
        raise ConfigError(f"{path} = {shown(value)} holds a character that cannot be shown; leave it out")
    if len(value.encode()) > MOST_BYTES:
        raise ConfigError(f"{path} = {shown(value)} has {len(value.encode())} bytes; {MOST_BYTES} are the most")
    return value


def _mapping(path: str, kind: Any, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong_type(path, value, "a mapping of names to values")
    found: dict[str, Any] = {}
    for key, inner in value.items():
        name = _text(f"a name in {path}", key)
        if name in found:
            raise ConfigError(
                f"{path}: the key {shown(name)} stands there twice, once as a number; keep one of the two"
            )
        found[name] = typed(f"{path}.{name}", kind, inner)
    return found


def _named(path: str, kind: type[StrEnum], value: Any) -> StrEnum:
    names = [member.value for member in kind]
    if value not in names:
        text = value if isinstance(value, str) and len(value) <= 80 else shown(value)
        near = difflib.get_close_matches(text, names, n=1, cutoff=0.0)
        raise ConfigError(f'{path} = {text} is not one of {", ".join(names)}; the nearest is "{near[0]}"')
    return kind(value)


def _wrong_type(path: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{path} = {shown(value)} has the wrong type: it must be {wanted}")

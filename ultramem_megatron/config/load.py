"""YAML files and dotted overrides -> a checked ``RunConfig``, and back to YAML."""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import ConfigError


def load_run_config(path: Path, overrides: Sequence[str] = (), recipes: Path | None = None) -> RunConfig:
    """Read ``path``, apply ``key=value`` overrides, check everything.

    Args:
        path: A YAML file with any of the sections of ``RunConfig``. ``base: NAME`` names a file beside it,
            NAME.yaml, or a recipe, whose settings come first.
        overrides: Dotted assignments such as ``model.layers=8``; a value is read as YAML.
        recipes: Folder of the recipes that a ``base`` may name.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown (the nearest one is named), a value has
            the wrong type or breaks a rule.
    """
    return resolve([*_layers(path, recipes, ()), *map(parse_override, overrides)])


def _layers(path: Path, recipes: Path | None, above: tuple[Path, ...]) -> list[tuple[str, dict[str, Any]]]:
    """The settings of ``path`` and, before them, those of the file that it names as its ``base``."""
    content = _read_file(path)
    base = content.pop("base", None)
    if base is None:
        return [(str(path), content)]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base = {base} must name one other file, without .yaml and relative to this one")
    places = [folder / f"{base}.yaml" for folder in (path.parent, recipes) if folder is not None]
    parent = next((place for place in places if place.is_file()), None)
    if parent is None:
        raise ConfigError(
            f"{path}: base = {base} is neither the file {places[0]} nor a recipe; name one without .yaml, relative to "
            "this file, or a recipe of `ultramem recipes`"
        )
    chain = (*above, path.resolve())
    if parent.resolve() in chain:
        names = " -> ".join(one.stem for one in (*chain, parent))
        raise ConfigError(f"{path}: base = {base} leads back to a file that builds on this one: {names}")
    return [*_layers(parent, recipes, chain), (str(path), content)]


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; name a YAML file or a recipe (see `ultramem recipes`)")
    try:
        content = read_yaml(path.read_text()) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not readable as YAML: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections (model:, memory:, ...), not a {type(content).__name__}")
    return content


def parse_override(text: str) -> tuple[str, dict[str, Any]]:
    """``a.b=c`` -> (text, nested dict)."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f'override "{text}" is not of the form section.key=value, as in training.steps=100')
    try:
        nested = read_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f'override "{text}" cannot be read as YAML: {_one_line(error)}') from None
    section, *field = key.split(".")
    for depth, part in reversed(list(enumerate(field))):
        nested = _Entry({part: nested}) if depth else {part: nested}
    return text, {section: nested}


class _Entry(dict[str, Any]):
    """One entry of a field that is a mapping; the entries beside it stay. Without this mark the field is set whole."""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML ships no types
    """YAML 1.2 scalars: ``1e-4`` is a float; ``1:2``, ``no`` and ``2026-01-31`` are text, unlike in YAML 1.1.

    A whole number that is not written in its shortest form (``007``, ``1_000``) is left as text: a number field takes
    it as decimal, and a text field keeps it as it was written.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [r for r in resolvers if not r[0].endswith((":int", ":float", ":bool", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"(0|-?[1-9][0-9]*)$"), list("-0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"([Tt]rue|TRUE|[Ff]alse|FALSE)$"), list("tTfF"))


def read_yaml(text: str) -> Any:
    """YAML text as plain Python values.

    Raises:
        yaml.YAMLError: The text is no YAML.
        ValueError: A number has thousands of digits.
    """
    return yaml.load(text, _Loader)  # _Loader is a SafeLoader: it builds no objects


def resolve(layers: Iterable[tuple[str, dict[str, Any]]]) -> RunConfig:
    """Merge (origin, nested dict) pairs over the defaults, later ones winning, and build the config."""
    plain: Any = OmegaConf.create({})
    for origin, nested in layers:
        _refuse_unknown_keys(nested, RunConfig, origin)
        _clear_mappings(plain, nested)
        try:
            plain = OmegaConf.merge(plain, _unmarked(nested))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{origin} holds what no setting can be: {str(error).splitlines()[0]}") from None
    config = _build(RunConfig, OmegaConf.to_container(plain), "")
    assert isinstance(config, RunConfig)
    return config


def _clear_mappings(plain: DictConfig, nested: dict[str, Any]) -> None:
    """Take out the mapping-valued fields that ``nested`` sets, or merging would only add to them."""
    for section, fields in nested.items():
        for name, value in fields.items():
            if isinstance(value, dict) and not isinstance(value, _Entry):
                plain.get(section, {}).pop(name, None)


def _unmarked(value: Any) -> Any:
    return {key: _unmarked(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def to_yaml(config: RunConfig) -> str:
    """The resolved config, every field, loadable by ``load_run_config``."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def to_plain(config: Any) -> dict[str, Any]:
    """The config as nested dicts of numbers and strings."""
    plain = dataclasses.asdict(config)
    return {section: {k: _plain_value(v) for k, v in fields.items()} for section, fields in plain.items()}


def _plain_value(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def _refuse_unknown_keys(nested: dict[str, Any], kind: type, origin: str, prefix: str = "") -> None:
    hints = get_type_hints(kind)
    for key, value in nested.items():
        if key not in hints:
            raise ConfigError(_unknown_key(f"{prefix}{key}", origin))
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{origin}: {prefix}{key} is a section and needs keys of its own, not {value}")
            _refuse_unknown_keys(value, hints[key], origin, f"{prefix}{key}.")
        elif any(mark in str(value) for mark in _OMEGACONF_MARKS):
            raise ConfigError(f"{origin}: {prefix}{key} = {value} is a reference; settings are plain, write its value")


_OMEGACONF_MARKS = ("${", "???")  # interpolation, and "missing": neither would be resolved


def _unknown_key(path: str, origin: str) -> str:
    known = [
        f"{section}.{field.name}"
        for section, kind in get_type_hints(RunConfig).items()
        for field in dataclasses.fields(kind)
    ]
    near = difflib.get_close_matches(path, [*known, *get_type_hints(RunConfig)], n=1, cutoff=0.0)
    return f'{origin}: unknown key "{path}"; the nearest known key is "{near[0]}"'


def _build(kind: type, values: Any, path: str) -> Any:
    """Dataclass from plain values, types converted and checked by OmegaConf field by field."""
    hints = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    types = OmegaConf.structured(kind)
    OmegaConf.set_readonly(types, False)  # frozen dataclasses come read-only
    for key, value in (values or {}).items():
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = _build(hints[key], value, f"{key}.")
        else:
            arguments[key] = _typed(types, key, hints[key], value, path)
    return kind(**arguments)


def _typed(types: DictConfig, key: str, hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _named(hint, value, f"{path}{key}")
    if hint is str and type(value) is int:
        return str(value)
    if hint is str and isinstance(value, bool | float):
        raise ConfigError(f"{path}{key} = {value} must be text; write it in quotes")
    try:
        OmegaConf.update(types, key, value)
        plain = OmegaConf.to_container(types)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{path}{key} = {value!r} has the wrong type: {first}") from None
    assert isinstance(plain, dict)
    for number in plain[key].values() if isinstance(plain[key], dict) else [plain[key]]:
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{path}{key} = {value} must be a finite number")
    return plain[key]


def _named(kind: type[StrEnum], value: Any, path: str) -> StrEnum:
    names = [member.value for member in kind]
    if value not in names:
        near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.0)
        raise ConfigError(f'{path} = {value} is not one of {", ".join(names)}; the nearest is "{near[0]}"')
    return kind(value)

"""YAML files and dotted overrides -> a checked ``RunConfig``, and back to YAML."""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from ultramem_megatron.config.folders import with_home
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.config.values import typed
from ultramem_megatron.config.yaml_text import YamlError, read_yaml, read_yaml_file, write_yaml
from ultramem_megatron.errors import ConfigError, shown
from ultramem_megatron.files import file_is_there

MOST_BASES = 20
"""Files that build on each other."""


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
    chain = (*above, path.resolve())
    parent = _find_base(path, base, recipes)
    if parent.resolve() in chain:
        names = " -> ".join(one.stem for one in (*chain, parent))
        raise ConfigError(f"{path}: base = {base} leads back to a file that builds on this one: {names}")
    if len(chain) > MOST_BASES:
        raise ConfigError(
            f"{path}: base = {base} is one too many: {MOST_BASES} files may build on each other, join some"
        )
    return [*_layers(parent, recipes, chain), (str(path), content)]


def _find_base(path: Path, base: Any, recipes: Path | None) -> Path:
    if not isinstance(base, str):
        raise ConfigError(
            f"{path}: base = {shown(base)} must name one other file, without .yaml and relative to this one"
        )
    try:
        name = Path(base).expanduser()
    except RuntimeError:  # nobody of that name
        name = Path(base)
    places = [folder / f"{name}.yaml" for folder in (path.parent, recipes) if folder is not None]
    parent = next((place for place in places if file_is_there(place)), None)
    if parent is None:
        raise ConfigError(
            f"{path}: base = {base} is neither the file {places[0]} nor a recipe; name one without .yaml, relative to "
            "this file, or a recipe of `ultramem recipes`"
        )
    return parent


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; name a YAML file or a recipe (see `ultramem recipes`)") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a YAML file or a recipe") from None
    except YamlError as error:
        raise ConfigError(f"{path} is not readable as YAML: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections (model:, memory:, ...), not a {type(content).__name__}")
    return content or {}


def parse_override(text: str) -> tuple[str, dict[str, Any]]:
    """``a.b=c`` -> (text, nested dict)."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {_quoted(text)} is not of the form section.key=value, as in training.steps=100")
    try:
        nested = read_yaml(value)
    except YamlError as error:
        raise ConfigError(f"override {_quoted(text)} cannot be read as YAML: {error}") from None
    section, *field = key.split(".", maxsplit=_MOST_KEYS)
    for depth, part in reversed(list(enumerate(field))):
        nested = _Entry({part: nested}) if depth else {part: nested}
    return text, {section: nested}


_MOST_KEYS = 3
"""Dots in ``section.field.entry``, and one that is too many: names of sources may not hold any on a command line."""


class _Entry(dict[str, Any]):
    """One entry of a field that is a mapping; the entries beside it stay. Without this mark the field is set whole."""


def resolve(layers: Iterable[tuple[str, dict[str, Any]]]) -> RunConfig:
    """Merge (origin, nested dict) pairs over the defaults, later ones winning, and build the config."""
    merged: dict[str, dict[str, Any]] = {}
    for origin, nested in layers:
        _refuse_unknown_keys(nested, origin)
        for section, fields in nested.items():
            _merge(merged.setdefault(section, {}), fields)
    return with_home(RunConfig(**{section: _build(section, fields) for section, fields in merged.items()}))


def _merge(fields: dict[str, Any], later: dict[str, Any]) -> None:
    for name, value in later.items():
        before = fields.get(name)
        fields[name] = {**before, **value} if isinstance(value, _Entry) and isinstance(before, dict) else value


def _build(section: str, fields: dict[str, Any]) -> Any:
    kind = get_type_hints(RunConfig)[section]
    hints = get_type_hints(kind)
    return kind(**{name: typed(f"{section}.{name}", hints[name], value) for name, value in fields.items()})


def _refuse_unknown_keys(nested: dict[str, Any], origin: str) -> None:
    sections = get_type_hints(RunConfig)
    for section, fields in nested.items():
        if section not in sections:
            raise ConfigError(_unknown_key(section, origin))
        if not isinstance(fields, dict):
            raise ConfigError(
                f"{_origin(origin)}: {section} is a section and needs keys of its own, not {shown(fields)}"
            )
        known = {field.name for field in dataclasses.fields(sections[section])}
        for name in fields:
            if name not in known:
                raise ConfigError(_unknown_key(f"{section}.{name}", origin))


def _unknown_key(key: Any, origin: str) -> str:
    known = [
        f"{section}.{field.name}"
        for section, kind in get_type_hints(RunConfig).items()
        for field in dataclasses.fields(kind)
    ]
    path = str(key)[:_MOST_OF_A_KEY]
    near = difflib.get_close_matches(path, [*known, *get_type_hints(RunConfig)], n=1, cutoff=0.0)
    return f'{_origin(origin)}: unknown key "{path}"; the nearest known key is "{near[0]}"'


_MOST_OF_A_KEY = 100


def _origin(origin: str) -> str:
    """The path of a file, or an override, whose value may be long."""
    return origin if len(origin) <= 300 else f"{origin[:300]}..."


def _quoted(text: str) -> str:
    return f'"{_origin(text)}"'


def to_yaml(config: RunConfig) -> str:
    """The resolved config, every field, loadable by ``load_run_config``."""
    return write_yaml(to_plain(config))


def to_plain(config: Any) -> dict[str, Any]:
    """The config as nested dicts of numbers and strings."""
    plain = dataclasses.asdict(config)
    return {section: {k: _plain_value(v) for k, v in fields.items()} for section, fields in plain.items()}


def _plain_value(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value

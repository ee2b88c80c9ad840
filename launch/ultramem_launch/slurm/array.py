"""``--array sweep.yaml``: several runs from one config, a task of a job array each."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultramem_megatron.errors import ConfigError

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FORM = "write `runs: {NAME: [key=value, ...]}`, or `grid: {section.key: [value, value], ...}`"


def read_sweep(path: Path) -> dict[str, list[str]]:
    """Overrides by the name of a run, in the order of the file.

    ``runs`` names them one by one; ``grid`` makes every combination, named by its values.

    Raises:
        ConfigError: The file has another form.
    """
    from ultramem_megatron.config.yaml_text import YamlError, read_yaml_file

    try:
        content = read_yaml_file(path)
    except (OSError, YamlError) as error:
        raise ConfigError(f"--array {path} cannot be read: {error}") from None
    match content:
        case {"runs": dict(runs), **rest} if runs and not rest:
            sweep = {str(name): overrides for name, overrides in runs.items()}
        case {"grid": dict(grid), **rest} if grid and not rest:
            sweep = _combine(path, grid)
        case _:
            raise ConfigError(f"--array {path} is no sweep; {FORM}")
    for name, overrides in sweep.items():
        if not RUN_NAME.fullmatch(name):
            raise ConfigError(f'--array {path}: "{name}" names a folder: letters, digits, ".", "_" and "-"; {FORM}')
        if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
            raise ConfigError(f"--array {path}: {name} must be a list of key=value; {FORM}")
    return sweep


def _combine(path: Path, grid: dict[str, Any]) -> dict[str, list[str]]:
    axes: list[Sequence[tuple[str, Any]]] = []
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"--array {path}: grid: {key} must be a list of values; {FORM}")
        axes.append([(str(key), value) for value in values])
    combined = {}
    for choice in itertools.product(*axes):
        name = "_".join(f"{key.rpartition('.')[2]}-{_word(value)}" for key, value in choice)
        combined[name] = [f"{key}={_word(value)}" for key, value in choice]
    return combined


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

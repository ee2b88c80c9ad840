"""CONFIG on the command line: the name of a shipped recipe or the path of a YAML file."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ultramem_megatron.errors import ConfigError
from ultramem_megatron.files import file_is_there

if TYPE_CHECKING:
    from ultramem_megatron.config.run import RunConfig

RECIPES = Path(__file__).parent / "recipes"
MOST_SHOWN = 200
"""Characters of a CONFIG that is none, in an error."""


def recipe_names() -> list[str]:
    """Shipped recipes, as they are typed: ``quickstart``, ``ablation/00-pkm``, ..."""
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """The YAML file that CONFIG names.

    Raises:
        ConfigError: Neither a file nor a recipe; the nearest recipe is named.
    """
    recipe = RECIPES / f"{name}.yaml"
    if name in recipe_names():
        return recipe
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or file_is_there(path):
        return path
    near = difflib.get_close_matches(name[:MOST_SHOWN], recipe_names(), n=1, cutoff=0.0)
    raise ConfigError(
        f'CONFIG "{name[:MOST_SHOWN]}" is neither a YAML file nor a recipe; the nearest recipe is "{near[0]}"'
    )


def load_config(name: str, overrides: Sequence[str]) -> "RunConfig":
    """CONFIG and ``key=value`` overrides -> a checked config."""
    from ultramem_megatron.config.load import load_run_config

    return load_run_config(find_config(name), overrides, RECIPES)

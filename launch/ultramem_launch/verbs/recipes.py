"""``ultramem recipes``: the configs that ship."""

import json

import typer

from ultramem_launch.configs import RECIPES, recipe_names


def recipes(as_json: bool = typer.Option(False, "--json", help="As a JSON list of names.")) -> None:
    """List the recipes that CONFIG may name, with their first line.

    Example: ultramem recipes
    """
    names = recipe_names()
    if as_json:
        typer.echo(json.dumps(names))
        return
    width = max(map(len, names))
    for name in names:
        first = (RECIPES / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")
        typer.echo(f"{name:{width}s} {first}")

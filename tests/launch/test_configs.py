"""CONFIG is the name of a recipe or the path of a YAML file."""

from pathlib import Path

import pytest

from ultramem_launch.configs import RECIPES, find_config, load_config, recipe_names
from ultramem_megatron.errors import ConfigError


def test_recipes_are_named_by_their_path() -> None:
    names = recipe_names()
    assert "quickstart" in names
    assert names == sorted(names)
    assert all(find_config(name) == RECIPES / f"{name}.yaml" for name in names)


def test_every_recipe_says_what_it_is() -> None:
    for name in recipe_names():
        first = find_config(name).read_text().splitlines()[0]
        assert first.startswith("# ") and len(first) > 20, (
            f"recipe {name}: its first line is shown by `ultramem recipes`"
        )


def test_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: {layers: 3}\n")
    (tmp_path / "plain").write_text("model: {layers: 5}\n")
    assert load_config("mine.yaml", []).model.layers == 3
    assert load_config("plain", ["model.layers=7"]).model.layers == 7


def test_a_recipe_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert load_config("quickstart", []).memory.variant == "ultramem"


def test_neither() -> None:
    with pytest.raises(ConfigError, match=r'^CONFIG "quikstart" is neither .*; the nearest recipe is "quickstart"$'):
        find_config("quikstart")
    with pytest.raises(ConfigError, match=r"^none\.yaml does not exist; name a YAML file or a recipe"):
        load_config("none.yaml", [])

"""From YAML and overrides to a config, and back."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramem_launch.configs import find_config, recipe_names
from ultramem_megatron.config.load import load_run_config, parse_override, resolve, to_plain, to_yaml
from ultramem_megatron.config.memory import PartitionName, VariantName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.config.training import Precision
from ultramem_megatron.config.yaml_text import read_yaml
from ultramem_megatron.errors import ConfigError

MEMORY = {"memory": {"variant": "ultramem", "spans": "1:2"}}


def make(*overrides: str) -> RunConfig:
    return resolve([("base", MEMORY), *map(parse_override, overrides)])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1:2", "1:2"), ("1:2/3:4", "1:2/3:4"), ("12:30:45", "12:30:45")],
        *[("1e-4", 1e-4), ("1E3", 1000.0), ("2.5", 2.5), (".5", 0.5), ("1.", 1.0), ("-1.5e+2", -150.0), ("+.5", 0.5)],
        *[("0", 0), ("12", 12), ("-3", -3), ("010", "010"), ("08", "08"), ("1_000", "1_000"), ("0x10", "0x10")],
        *[("true", True), ("False", False), ("no", "no"), ("on", "on"), ("yes", "yes")],
        *[("2026-01-31", "2026-01-31"), ("~", None), ("", None), ("1e", "1e"), ("e5", "e5"), (".", ".")],
    ],
)
def test_yaml_scalars(text: str, value: object) -> None:
    assert read_yaml(text) == value
    assert type(read_yaml(text)) is type(value)


def test_sections_and_overrides_in_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {layers: 6}\nmemory: {variant: pkm, spans: 1:2, parallel_size: 4}\n")
    config = load_run_config(file, ["model.layers=8", "model.layers=2", "optimizer.learning_rate=1e-4"])
    assert config.model.layers == 2
    assert config.memory.variant is VariantName.PKM
    assert config.memory.spans == "1:2"
    assert config.memory.parallel_size == "4"
    assert config.optimizer.learning_rate == 1e-4
    assert config.training == RunConfig().training


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert load_run_config(tmp_path / "run.yaml") == RunConfig()


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("model.layers=010", lambda c: c.model.layers == 10),
        ("model.hidden=1_024", lambda c: c.model.hidden == 1024),
        ('model.layers="4"', lambda c: c.model.layers == 4),
        ("data.folder=no", lambda c: c.data.folder == "no"),
        ("data.folder=007", lambda c: c.data.folder == "007"),
        ("data.folder=2026-01-31", lambda c: c.data.folder == "2026-01-31"),
        ('data.folder="1e5"', lambda c: c.data.folder == "1e5"),
        ("data.folder=a=b", lambda c: c.data.folder == "a=b"),
        ("model.gated_mlp=yes", lambda c: c.model.gated_mlp is True),
        ("data.sources={a: 1, b: 2}", lambda c: c.data.sources == {"a": 1.0, "b": 2.0}),
        ("data.sources.a=1", lambda c: c.data.sources == {"a": 1.0}),
        ("memory.partition=number_wise", lambda c: c.memory.partition is PartitionName.NUMBER_WISE),
        ("training.precision=fp32", lambda c: c.training.precision is Precision.FP32),
        ("optimizer.beta1=0", lambda c: c.optimizer.beta1 == 0.0),
    ],
)
def test_a_value_takes_the_type_of_its_field(override: str, read: Any) -> None:
    assert read(make(override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.layer=2", r'^model\.layer=2: unknown key "model\.layer"; the nearest known key is "model\.layers"$'),
        ("memory.topm=2", r'unknown key "memory\.topm"; the nearest known key is "memory\.top_m"'),
        ("memroy.top_m=2", r'unknown key "memroy"; the nearest known key is "memory"'),
        ("layers=2", r'unknown key "layers"; the nearest known key is "model\.layers"'),
        ("model=2", r"^model=2: model is a section and needs keys of its own, not 2$"),
        ("model.layers=", r"^model\.layers = None has the wrong type"),
        ("model.layers=two", r"^model\.layers = 'two' has the wrong type: it must be a whole number$"),
        ("model.layers=4.5", r"^model\.layers = 4\.5 has the wrong type"),
        ("model.layers=true", r"^model\.layers = True has the wrong type"),
        ("model.layers=[1]", r"^model\.layers = \[1\] has the wrong type"),
        ("model.layers.x=1", r"^model\.layers = \{'x': 1\} has the wrong type"),
        ("optimizer.beta1=high", r"^optimizer\.beta1 = 'high' has the wrong type: it must be a number$"),
        ("optimizer.learning_rate=nan", r"^optimizer\.learning_rate = nan must be a finite number$"),
        ("optimizer.weight_decay=inf", r"^optimizer\.weight_decay = inf must be a finite number$"),
        ("optimizer.learning_rate=1e999", r"^optimizer\.learning_rate = inf must be a finite number$"),
        ("data.sources.a=nan", r"^data\.sources\.a = nan must be a finite number$"),
        ("data.sources=3", r"^data\.sources = 3 has the wrong type"),
        ("data.sources={~: 2}", r"^a name in data\.sources = None has the wrong type: it must be text"),
        ("data.folder=1e5", r"^data\.folder = 100000\.0 must be text; write it in quotes$"),
        ("data.folder=true", r"^data\.folder = True must be text; write it in quotes$"),
        ("data.folder=!!set {a}", r"cannot be read as YAML: could not determine a constructor for the tag .*:set'"),
        ("model.layers=${model.heads}", r"^model\.layers = '\$\{model\.heads\}' has the wrong type"),
        ("data.folder=${", r"^data\.folder = '\$\{' is a reference; settings are plain, write its value$"),
        ("model.layers=???", r"^model\.layers = '\?\?\?' has the wrong type"),
        (
            "model.layers",
            r'^override "model\.layers" is not of the form section\.key=value, as in training\.steps=100$',
        ),
        ("=2", r'^override "=2" is not of the form section\.key=value'),
        ("model..layers=2", r'^override "model\.\.layers=2" is not of the form'),
        ("data.folder=a: b: c", r'^override "data\.folder=a: b: c" cannot be read as YAML: mapping values'),
        ("data.folder=!!python/name:os.system", r"cannot be read as YAML: could not determine a constructor"),
        pytest.param("model.layers=" + "9" * 5000, r"cannot be read as YAML", id="a-number-of-5000-digits"),
    ],
)
def test_bad_overrides_are_refused_in_one_paragraph(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        make(override)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- model", r"run\.yaml must hold sections \(model:, memory:, \.\.\.\), not a list$"),
        ("model: [", r"run\.yaml is not readable as YAML: while parsing"),
        ("model: {layrs: 2}", r'run\.yaml: unknown key "model\.layrs"; the nearest known key is "model\.layers"$'),
        ("model:", r"run\.yaml: model is a section and needs keys of its own, not None$"),
        ("1: 2", r'run\.yaml: unknown key "1"'),
        ("\udc80", r"run\.yaml is not readable as YAML: 'utf-8' codec"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=message) as refusal:
        load_run_config(tmp_path / "run.yaml")
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist; name a YAML file or a recipe"):
        load_run_config(tmp_path / "none.yaml")


def test_an_override_is_checked_with_the_file_below_it(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("memory: {variant: ultramem, spans: 1:2, keys_per_side: 8, top_m: 8}\n")
    with pytest.raises(ConfigError, match=r"memory\.top_m = 8 exceeds the 6 row keys"):
        load_run_config(tmp_path / "run.yaml", ["memory.keys_per_side=3"])


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_load_and_survive_writing(name: str, tmp_path: Path) -> None:
    config = load_run_config(find_config(name))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_run_config(tmp_path / "config.yaml") == config


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)
plain_words = words.filter(lambda word: "${" not in word and "???" not in word)


@settings(deadline=None, max_examples=30)
@given(
    folder=plain_words,
    sources=st.dictionaries(plain_words, st.floats(1e-9, 1e9), max_size=3),
    rate=st.floats(1e-12, 100),
    layers=st.integers(1, 4096),
    parallel_size=st.one_of(st.just("auto"), st.integers(1, 999_999).map(str)),
    gated=st.booleans(),
    precision=st.sampled_from(Precision),
)
def test_what_is_written_is_read(
    folder: str,
    sources: dict[str, float],
    rate: float,
    layers: int,
    parallel_size: str,
    gated: bool,
    precision: Precision,
) -> None:
    base = RunConfig()
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, layers=layers, gated_mlp=gated),
        memory=dataclasses.replace(base.memory, parallel_size=parallel_size, spans="1:2"),
        training=dataclasses.replace(base.training, precision=precision),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=rate),
        data=dataclasses.replace(base.data, folder=folder, sources=sources),
    )
    assert resolve([("written", read_yaml(to_yaml(config)))]) == config


def test_plain_values_are_plain() -> None:
    plain = to_plain(make())
    kinds = {type(value) for section in plain.values() for value in section.values()}
    assert kinds == {int, float, str, bool, dict}
    assert plain["memory"]["variant"] == "ultramem"


def test_nothing_can_be_changed() -> None:
    config = RunConfig()
    sections = [config, *(getattr(config, field.name) for field in dataclasses.fields(config))]
    for section in sections:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, dataclasses.fields(section)[0].name, 1)


def test_a_mapping_is_set_whole_and_an_entry_of_it_alone(tmp_path: Path) -> None:
    base, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text("data: {sources: {a: 1, b: 2}}\n")
    mine.write_text("base: base\ndata: {sources: {c: 3}}\n")
    assert load_run_config(mine).data.sources == {"c": 3}, "what a file names replaces its base's"
    assert load_run_config(base, ["data.sources={c: 4}"]).data.sources == {"c": 4}
    assert load_run_config(base, ["data.sources.b=5", "data.sources.c=6"]).data.sources == {"a": 1, "b": 5, "c": 6}


def test_a_base_comes_first_and_may_have_one_itself(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "one.yaml").write_text("model: {layers: 2, heads: 2}\n")
    (tmp_path / "two.yaml").write_text("base: one\nmodel: {layers: 6}\n")
    (tmp_path / "folder" / "three.yaml").write_text("base: ../two\ntraining: {steps: 7}\n")
    config = load_run_config(tmp_path / "folder" / "three.yaml", ["training.seed=8"])
    assert (config.model.heads, config.model.layers, config.training.steps, config.training.seed) == (2, 6, 7, 8)


def test_a_base_may_be_a_recipe(tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    (recipes / "tiny").mkdir(parents=True)
    (recipes / "tiny" / "a.yaml").write_text("base: b\nmodel: {layers: 3}\n")
    (recipes / "tiny" / "b.yaml").write_text("model: {heads: 2}\n")
    (tmp_path / "mine.yaml").write_text("base: tiny/a\n")
    model = load_run_config(tmp_path / "mine.yaml", recipes=recipes).model
    assert (model.layers, model.heads) == (3, 2)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nowhere", r"mine\.yaml: base = nowhere is neither the file .*nowhere\.yaml nor a recipe; name one without"),
        ("mine", r"mine\.yaml: base = mine leads back to a file that builds on this one: mine -> mine$"),
        ("[a, b]", r"mine\.yaml: base = \['a', 'b'\] must name one other file"),
    ],
)
def test_bad_bases(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n")
    with pytest.raises(ConfigError, match=message):
        load_run_config(tmp_path / "mine.yaml")

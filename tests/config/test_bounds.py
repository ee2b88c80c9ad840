"""Every number has a range, documented, and every value its type."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from ultramem_megatron.config import load
from ultramem_megatron.config.check import ranges_of
from ultramem_megatron.config.folders import found_for, with_whole_paths
from ultramem_megatron.config.load import load_run_config, parse_override, resolve, to_yaml
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import ConfigError

FIELDS = [
    (section, field.name, get_type_hints(kind)[field.name])
    for section, kind in get_type_hints(RunConfig).items()
    for field in dataclasses.fields(kind)
]
NUMBERS = [(section, name) for section, name, hint in FIELDS if hint in (int, float, dict[str, float])]


def make(*overrides: str) -> RunConfig:
    return resolve(map(parse_override, overrides))


def written(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


@pytest.mark.parametrize(("section", "name"), NUMBERS, ids=lambda value: value)
def test_beyond_its_range_a_number_is_refused(section: str, name: str) -> None:
    between = ranges_of(get_type_hints(RunConfig)[section])[name]
    entry = ".a" if (section, name) == ("data", "sources") else ""
    for value in (between.most * 1.01 + 1, 1e30, 1e300, -1e300, between.least - 1, -(2**63), 2**63):
        with pytest.raises(ConfigError, match=rf"{name}.* must (lie between|be greater than 0)|has the wrong type"):
            make(f"{section}.{name}{entry}={value!r}")


def test_ranges_are_documented() -> None:
    text = (Path(load.__file__).parent / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9_.]+)` \| ([^|]+) \|", text, flags=re.MULTILINE))
    expected = {}
    for section, name in NUMBERS:
        between = ranges_of(get_type_hints(RunConfig)[section])[name]
        means = f" ({between.least_means})" if between.least_means else ""
        expected[f"{section}.{name}"] = f"{written(between.least)}{means} to {written(between.most)}"
    assert rows == expected


@pytest.mark.parametrize("value", ["-7", "0", "1", "2", "1.0", "maybe", "''", "[true]", "{}", "~"])
@pytest.mark.parametrize("path", [f"{section}.{name}" for section, name, hint in FIELDS if hint is bool])
def test_a_boolean_is_true_or_false(path: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{path} = .* has the wrong type: it must be true or false$"):
        make(f"{path}={value}")


@pytest.mark.parametrize(
    ("override", "steps"),
    [("1e3", 1000), ("10.0", 10), ("1E2", 100), ("1_0", 10), ("'12'", 12), ("0012", 12), ("+5", 5), ("2.5e1", 25)],
)
def test_whole_numbers_as_people_write_them(override: str, steps: int) -> None:
    assert make(f"training.steps={override}").training.steps == steps


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=1e-3", "must be a whole number"),
        ("training.steps=10.5", "must be a whole number"),
        ("training.steps=\uff11\uff10", "must be a whole number"),
        ("training.steps=1e400", "must be a whole number"),
        ("optimizer.beta1='0x1p3'", "must be a number"),
        ("optimizer.beta1='\uff11'", "must be a number"),
        ("memory={variant: ultramem, spans: \uff11:\uff12}", "is not a list of spans"),
        ("memory.parallel_size='" + "9" * 5000 + "'", "must be auto or a number of ranks|4096 are the most"),
        ("memory.parallel_size=\uff11", "must be auto or a number of ranks"),
        ("memory={expansion: -7}", "^memory.expansion = -7 must be greater than 0"),
        ("data.sources.a.b=1", r"^data.sources.a = \{'b': 1\} has the wrong type: it must be a number$"),
        ("data.sources." + ".".join("a" * 4000) + "=1", "must be a number"),
        ("data.sources." + "n" * 300 + "=1", "is no path: it has 300 bytes"),
        ("data.folder=" + "n" * 300, "is no path: it has 300 bytes and a name of 300"),
        ("checkpoint.load=" + "a/" * 2500, "has 5000 bytes; 4096 are the most"),
        ('data.folder="a\\e[2Jb"', r"^data.folder = 'a\\x1b\[2Jb' holds a character that cannot be shown"),
        ('data.folder="a\\ud800"', "holds a character that cannot be shown"),
        ('data.sources={"\\e[2J": 1}', "holds a character that cannot be shown"),
        ("data.sources={2020: 1, '2020': 2}", "the key '2020' stands there twice"),
        ("model={layers: 2, layers: 4}", 'the key "layers" stands in line 1 and again in line 1'),
        ("data.folder=~", "has the wrong type: it must be text; ~ and an empty value are YAML's null"),
        ("data.folder=~nobody-of-this-name/x", "begins with ~, and that home folder is not known"),
        ("model." + "x" * 100_000 + "=1", "unknown key"),
        ("x" * 100_000, "is not of the form"),
    ],
    ids=lambda value: value[:40],
)
def test_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        make(override)
    assert len(str(refusal.value)) <= 1000


def test_a_section_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training: {steps: 10}\nmodel: {layers: 2}\ntraining: {seed: 1}\n")
    with pytest.raises(ConfigError, match=r'run\.yaml is .*: the key "training" stands in line 1 and again in line 3'):
        load_run_config(file)
    (tmp_path / "mine.yaml").write_text("base: run\n")
    with pytest.raises(ConfigError, match=r'run\.yaml is .*: the key "training" stands in line 1 and again in line 3'):
        load_run_config(tmp_path / "mine.yaml")


def test_bases_and_names_have_bounds(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"f{number}.yaml").write_text(f"base: f{number + 1}\n")
    (tmp_path / "long.yaml").write_text(f"base: {'n' * 300}\n")
    (tmp_path / "list.yaml").write_text(f"base: [{'n, ' * 3000}]\n")
    (tmp_path / "null.yaml").write_text('base: "a\\0b"\n')
    for name, message in (
        ("f0", "is one too many: 20 files may build on each other"),
        ("long", "is neither the file"),
        ("list", "must name one other file"),
        ("null", "is neither the file"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_run_config(tmp_path / f"{name}.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(File name too long\)"):
        load_run_config(tmp_path / ("n" * 300))
    with pytest.raises(ConfigError, match="no regular file"):
        load_run_config(tmp_path)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "run.yaml").write_text("")
    monkeypatch.setattr(Path, "open", refuse)  # root may read all
    with pytest.raises(ConfigError, match=r"run\.yaml cannot be read \(Permission denied\); name a YAML file"):
        load_run_config(tmp_path / "run.yaml")


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = make("data.folder=~/data", "checkpoint.load=~/run/checkpoints")
    assert (config.data.folder, config.checkpoint.load) == (f"{tmp_path}/data", f"{tmp_path}/run/checkpoints")
    assert make("data.folder=a~b").data.folder == "a~b"
    (tmp_path / "base.yaml").write_text("training: {steps: 7}\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.yaml").write_text("base: ~/base\n")
    assert load_run_config(tmp_path / "elsewhere" / "mine.yaml").training.steps == 7


def test_saved_folders_hold_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    saved = with_whole_paths(make("data.folder=data", "checkpoint.load=old"))
    assert (saved.data.folder, saved.checkpoint.load) == (f"{tmp_path}/data", f"{tmp_path}/old")
    assert with_whole_paths(saved) == saved
    assert with_whole_paths(make("data.synthetic=true")).data.folder == RunConfig().data.folder


def test_a_folder_that_was_saved_as_relative_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_dir = tmp_path / "project" / "runs" / "one"
    run_dir.mkdir(parents=True)
    (tmp_path / "project" / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = make("data.folder=data")
    (run_dir / "config.yaml").write_text(to_yaml(config))
    assert found_for(config, run_dir).data.folder == f"{tmp_path}/project/data"
    assert found_for(make("data.folder=nowhere"), run_dir).data.folder == "nowhere"

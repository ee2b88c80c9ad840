"""Configs from a seed: good ones with something wrong or odd in them. The same seed and number give the same case."""

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.resources import files
from typing import Any, get_type_hints

import yaml

from config_fuzz.texts import SYNTAX, WHOLE_FILES, damaged
from config_fuzz.values import VALUES
from ultramem_megatron.config.check import Between, ranges_of
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.profile_file import built_in_profile
from ultramem_megatron.testing.tiny import EXPERTS, TINY

CONFIG = "run.yaml"


class Kind(StrEnum):
    """What is odd about a case."""

    VALUE = "value"
    """One field has a value from ``VALUES``, or one at an end of its range."""
    SOUND = "sound"
    """Several fields have values within their ranges: most are taken, and then must run."""
    SYNTAX = "syntax"
    """Bytes or lines of a good file are changed."""
    STRUCTURE = "structure"
    """A file made against readers: nested, growing, twice the same key, endless."""
    FILES = "files"
    """What is named is another thing: a folder, a chain of bases, a name too long, no UTF-8."""
    OVERRIDE = "override"
    """The part before ``=`` is odd."""
    OTHER = "other"
    """A cluster profile, a site file or a sweep, damaged or made against readers."""


class Reader(StrEnum):
    """What reads the file."""

    CONFIG = "config"
    PROFILE = "profile"
    SITE = "site"
    SWEEP = "sweep"


@dataclass(frozen=True, slots=True)
class Case:
    """What is typed, and the files that are there."""

    number: int
    kind: Kind
    files: dict[str, bytes]
    """By name; None of them lies outside of the folder of the case. A name that ends in ``/`` is a folder."""
    config: str = CONFIG
    overrides: list[str] = field(default_factory=list)
    reader: Reader = Reader.CONFIG


FIELDS: list[tuple[str, str, Any]] = [
    (section, item.name, get_type_hints(kind)[item.name])
    for section, kind in get_type_hints(RunConfig).items()
    for item in dataclasses.fields(kind)
]
_VALUES_OF_20 = 8
SPREAD = (
    *((Kind.VALUE,) * _VALUES_OF_20 + (Kind.SOUND,) * 4 + (Kind.SYNTAX,) * 3 + (Kind.STRUCTURE,) * 2),
    *(Kind.FILES, Kind.OVERRIDE, Kind.OTHER),
)


def make_case(seed: int, number: int) -> Case:
    """Case ``number`` of a seed."""
    draw = random.Random(f"{seed}/{number}")
    kind = SPREAD[number % len(SPREAD)]
    if kind is Kind.OTHER:
        return _other(draw, number)
    made, config, overrides = _MAKERS[kind](draw, number)
    return Case(number, kind, made, config, overrides)


_Made = tuple[dict[str, bytes], str, list[str]]


def _value(draw: random.Random, number: int) -> _Made:
    ordinal = number // len(SPREAD) * _VALUES_OF_20 + number % len(
        SPREAD
    )  # of the cases of this kind: all fields in turn
    section, name, hint = FIELDS[ordinal % len(FIELDS)]
    between = ranges_of(get_type_hints(RunConfig)[section]).get(name)
    ends = _ends(between) if between else []
    value = draw.choice(ends) if ends and draw.random() < 0.3 else draw.choice(VALUES)
    entry = ".a" if hint not in (int, float, str, bool) and draw.random() < 0.2 else ""
    if draw.random() < 0.7:
        return _tiny(draw), CONFIG, [f"{section}.{name}{entry}={value}"]
    return (
        {**_tiny(draw), "top.yaml": f"base: run\n{section}: {{{name}: {value}}}\n".encode("utf-8", "replace")},
        "top.yaml",
        [],
    )


def _ends(between: Between) -> list[str]:
    least, most = between.least, between.most
    return [repr(value) for value in (least, most, most + 1, least - 1, most * 1.0001, 2 * most, (least + most) / 2)]


def _sound(draw: random.Random, number: int) -> _Made:
    overrides = [_within(draw, *FIELDS[(number + 7 * step) % len(FIELDS)]) for step in range(draw.randint(1, 5))]
    return _tiny(draw), CONFIG, overrides


def _within(draw: random.Random, section: str, name: str, hint: Any) -> str:
    """A value that its field takes, near the usual one."""
    usual = TINY.get(section, {}).get(name)
    default = usual if usual is not None else getattr(getattr(RunConfig(), section), name)
    path = f"{section}.{name}"
    if hint is bool:
        return f"{path}={draw.choice(['true', 'false'])}"
    if hint is int:
        between = ranges_of(get_type_hints(RunConfig)[section])[name]
        near = [default, default * 2, max(default // 2, 1), default + 1, draw.randint(0, 8), int(between.least)]
        return f"{path}={draw.choice([*near, int(between.most)] if draw.random() < 0.3 else near)}"
    if hint is float:
        between = ranges_of(get_type_hints(RunConfig)[section])[name]
        return (
            f"{path}={draw.choice([default, default / 2, default * 2, draw.random(), between.least, between.most])!r}"
        )
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return f"{path}={draw.choice(list(hint))}"
    return f"{path}={draw.choice(['1:1', '1:2', '2:2', '1:1/2:2', 'auto', '1', '2', '', 'data'])}"


def _syntax(draw: random.Random, number: int) -> _Made:
    return {CONFIG: damaged(draw, _tiny(draw)[CONFIG])}, CONFIG, []


def _structure(draw: random.Random, number: int) -> _Made:
    section, name, _ = draw.choice(FIELDS)
    text = draw.choice(SYNTAX)(draw)
    head = draw.choice(["", f"{section}:\n  {name}: ", "data:\n  sources: ", "model: ", f"{section}: {{{name}: "])
    return {CONFIG: (head + text).encode("utf-8", "surrogatepass")}, CONFIG, []


def _files(draw: random.Random, number: int) -> _Made:
    made, config = draw.choice(WHOLE_FILES)(draw, _tiny(draw)[CONFIG])
    return made, config, [draw.choice(["training.steps=3", "model.layers=2"])] if draw.random() < 0.3 else []


def _override(draw: random.Random, number: int) -> _Made:
    section, name, _ = draw.choice(FIELDS)
    odd = draw.choice(VALUES)
    path = f"{section}.{name}"
    odd_keys = (f"{section}.", f".{name}", f"{section}..{name}", f"{path}.x", f"{path}.x.y.z", f"{section}.{odd}")
    more = (f"{odd}.{name}", f"{path}{odd}", path.upper(), f"data.sources.{odd}", section, name, odd, "base", "")
    long = ("a." * 5000, f"{section}.{'n' * 50_000}", f"data.sources.{'n' * 5000}", section * 999)
    key = draw.choice((*odd_keys, *more, *long))
    return _tiny(draw), CONFIG, [f"{key}{draw.choice(['=', '=', '=', '', '==', ' = '])}{draw.choice([odd, '1'])}"]


_SITE = b"""cluster: dgx-a100-80g
environment: {NCCL_DEBUG: INFO}
setup: [module load cuda]
sbatch: {account: lm, exclusive: ""}
free_gib: 1.5
"""
_SWEEP = b"grid: {training.seed: [1, 2], optimizer.learning_rate: [1e-3, 1e-4]}\n"
_SWEEP_OF_RUNS = b"runs: {a: [training.seed=1], b: [training.seed=2, model.layers=4]}\n"


def _other(draw: random.Random, number: int) -> Case:
    yaml_profile = files("ultramem_megatron.planning").joinpath("clusters/cpu-loopback.yaml").read_bytes()
    json_profile = built_in_profile("dgx-a100-80g").model_dump_json(by_alias=True, exclude_none=True).encode()
    sources = [(Reader.PROFILE, yaml_profile), (Reader.PROFILE, json_profile), (Reader.SITE, _SITE)]
    reader, content = draw.choice([*sources, (Reader.SWEEP, _SWEEP), (Reader.SWEEP, _SWEEP_OF_RUNS)])
    made = draw.choice(SYNTAX)(draw).encode("utf-8", "surrogatepass")
    data = damaged(draw, content) if draw.random() < 0.7 else draw.choice([made, content + made, made + content])
    return Case(number, Kind.OTHER, {"other.yaml": data}, "other.yaml", reader=reader)


def _tiny(draw: random.Random) -> dict[str, bytes]:
    """A good config: the tiny run, or a relative of it."""
    relatives: tuple[tuple[str, ...], ...] = ((), (), ("memory.variant=pkm",), ("memory.variant=none",), EXPERTS)
    content: dict[str, dict[str, Any]] = {section: dict(fields) for section, fields in TINY.items()}
    for override in (
        *draw.choice(relatives),
        *draw.choice(((), ("memory.variant=ultramem_v2", "memory.pre_value_dim=8"))),
    ):
        path, _, value = override.partition("=")
        section, _, name = path.partition(".")
        content.setdefault(section, {})[name] = yaml.safe_load(value)
    return {CONFIG: yaml.safe_dump(content, sort_keys=False).encode()}


_MAKERS: dict[Kind, Callable[[random.Random, int], _Made]] = {
    Kind.VALUE: _value,
    Kind.SOUND: _sound,
    Kind.SYNTAX: _syntax,
    Kind.STRUCTURE: _structure,
    Kind.FILES: _files,
    Kind.OVERRIDE: _override,
}

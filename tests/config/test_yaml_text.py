"""What YAML text may not do: say a thing twice, grow, nest, or reach the terminal."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramem_megatron.config.yaml_text import MOST_BYTES, YamlError, read_yaml, read_yaml_file, write_yaml
from ultramem_megatron.errors import MOST_CHARACTERS, one_paragraph, shown
from ultramem_megatron.files import read_json


def billion_laughs(levels: int, width: int) -> str:
    lines = ["a0: &a0 lol"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r'^the key "a" stands in line 1 and again in line 3; keep one of the two'),
        ("x: {a: 1, 'a': 2}", r'^the key "a" stands in line 1 and again in line 1'),
        ("x:\n- {b: 1}\n- b: 1\n  b: 2\n", r'^the key "b" stands in line 3 and again in line 4'),
        ("<<: {a: 1}\n<<: {b: 1}", r'^the key "<<" stands in line 1 and again in line 2'),
        (billion_laughs(9, 9), r"^more than 10000 values, what aliases repeat counted again \(line \d, "),
        ("a: &a {<<: *a}", r"^the alias \*a stands inside of what it names \(line 1"),
        ("&a [*a]", r"^the alias \*a stands inside of what it names"),
        ("- 1\n" * 10_001, r"^more than 10000 values"),
        ("[" * 5000, r"^more than 20 lists and mappings inside of each other"),
        ("{a: " * 5000, r"^more than 20 lists and mappings inside of each other"),
        ("- " * 5000, r"^more than 20 lists and mappings inside of each other"),
        ("&a [" * 30, "duplicate anchor"),
        ("9" * 5000, r"^a number of 5000 characters; 100 at most"),
        ("1." + "9" * 5000, r"^a number of 5002 characters"),
        ("!!int '" + "9" * 5000 + "'", r"^a number of 5000 characters"),
        ("a" * 10_001, r"^a text of 10001 characters; 10000 at most"),
        ("#" * (MOST_BYTES + 1), rf"^it has {MOST_BYTES + 1} characters; {MOST_BYTES} are the most$"),
        ("!!bool maybe", r'^"maybe" is no bool; leave the tag out'),
        ("!!int x", r'^"x" is no int'),
        ('!!float ""', r'^"" is no float'),
        ("!!timestamp x", r"^could not determine a constructor for the tag .*:timestamp'"),
        ("!!python/object/apply:os.system [id]", r"^could not determine a constructor for the tag .*os\.system'"),
        ("!<tag:yaml.org,2002:python/name:os.system> x", r"could not determine a constructor"),
        ("!!map [a]", "expected a mapping"),
        ("!!str [a]", "expected a scalar"),
        ("{[a]: 1}", "unhashable"),
        ("*nowhere", "undefined alias"),
        ("a\n--- b", "expected a single document"),
        ('"\\UFFFFFFFF"', r"\w"),
        ("\x1b[2J", "special characters are not allowed"),
    ],
    ids=lambda value: value[:20] if len(value) > 20 else value,
)
def test_refused_in_one_paragraph(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message) as refusal:
        read_yaml(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        ("b: {<<: [{x: 1}, {x: 2, z: 3}]}", {"b": {"x": 1, "z": 3}}),
        ("[&a 1, *a, *a]", [1, 1, 1]),
        ("!!str 1e5", "1e5"),
        ("!!int 5", 5),
        ("{=: 1}", {"=": 1}),
        ("[" * 19 + "]" * 19, [[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]),
        ("- 1\n" * 9_000, [1] * 9_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_people_write_is_taken(text: str, value: object) -> None:
    assert read_yaml(text) == value


texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=9)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(texts, st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=4))
def test_what_is_written_is_read(content: dict[str, object]) -> None:
    assert read_yaml(write_yaml(content)) == content


@pytest.mark.parametrize("word", ["1:2", "no", "On", "0x10", "1e5", "007", "~", "null", "=", "<<", "2026-01-31", "1_0"])
def test_text_is_quoted_for_readers_of_yaml_1_1(word: str) -> None:
    import yaml

    assert yaml.safe_load(write_yaml({"a": word})) == {"a": word}


def test_files_are_read_up_to_the_bound(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"#" * (MOST_BYTES + 1))
    for path, message in (
        (file, f"more than {MOST_BYTES} bytes"),
        (tmp_path, "no regular file"),
        (Path("/dev/zero"), "no regular"),
    ):
        with pytest.raises(YamlError, match=message):
            read_yaml_file(path)
    file.write_bytes(b"a: \xff")
    with pytest.raises(YamlError, match="'utf-8' codec"):
        read_yaml_file(file)
    with pytest.raises(OSError, match="name too long"):
        read_yaml_file(tmp_path / ("n" * 300))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', r'^the key "a" stands twice in one object'),
        ("[NaN]", "^NaN is no number"),
        ("9" * 5000, "digits"),
        ("[" * 10**5, "too deep"),
        ("{", "Expecting"),
    ],
    ids=lambda value: value[:20],
)
def test_json_is_as_strict(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_json(text)
    assert read_json(json.dumps({"a": [1, {"b": None}]})) == {"a": [1, {"b": None}]}


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=3000))
def test_a_paragraph_can_be_shown(text: str) -> None:
    line = one_paragraph(text)
    assert line.isprintable()
    assert len(line) <= MOST_CHARACTERS


def test_a_paragraph_keeps_both_ends() -> None:
    assert one_paragraph("model = \x1b[2J\n  wrong; \u202eset it") == r"model = \x1b[2J wrong; \u202eset it"
    line = one_paragraph("path " + "x" * 5000 + " remedy")
    assert line.startswith("path x") and line.endswith("x remedy") and "left out here" in line
    assert one_paragraph("two  spaces in /a  b") == "two  spaces in /a  b"


@pytest.mark.parametrize(
    "value", ["x" * 5000, 10**90, {str(n): [n] * 50 for n in range(50)}, ["\x1b" * 999], {1: {2: {3: 4}}}]
)
def test_values_are_shown_shortly(value: object) -> None:
    assert len(shown(value)) < 400

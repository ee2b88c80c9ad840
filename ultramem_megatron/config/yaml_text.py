"""YAML text that may come from anywhere -> plain values, within bounds; and plain values -> YAML text.

YAML has means to make much of little: anchors that are used again and again, nesting, numbers of any length. What a run
is configured with needs none of it in large, so each has a bound here, far above what anybody writes by hand. Two equal
keys are refused, for YAML's last one wins in silence.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ultramem_megatron.files import read_bounded

MOST_BYTES = 256 * 1024
"""Of a file."""
MOST_DEPTH = 20
"""Lists and mappings inside of each other."""
MOST_VALUES = 10_000
"""Keys and values, those that an alias repeats counted again."""
MOST_CHARACTERS = 10_000
"""Of one text."""
MOST_DIGITS = 100
"""Characters of one number."""

_PREFIX = "tag:yaml.org,2002:"
_WRITTEN_OUT = {"int", "float", "bool", "null"}
"""Types that a plain scalar has by how it looks."""
_TAGS = {f"{_PREFIX}{name}" for name in (*_WRITTEN_OUT, "str", "seq", "map", "merge")}


class YamlError(ValueError):
    """The text is no YAML, or beyond a bound. One paragraph, without the name of the file."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML ships no types
    """YAML 1.2 scalars: ``1e-4`` is a float; ``1:2``, ``no`` and ``2026-01-31`` are text, unlike in YAML 1.1.

    A whole number that is not written in its shortest form (``007``, ``1_000``) is left as text: a number field takes
    it as decimal, and a text field keeps it as it was written.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [r for r in resolvers if not r[0].endswith((":int", ":float", ":bool", ":timestamp", ":value"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0
        self._sizes: dict[int, int] = {}
        """Values below a node, by its identity; a node that is still being read has none."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node of the text, and all below it."""
        event = self.peek_event()
        before = self._values
        self._count(1, event)
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _fault(f"the alias *{event.anchor} stands inside of what it names", event)
            self._count(self._sizes[id(node)], event)
            return node
        self._check(event)
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _fault(f"more than {MOST_DEPTH} lists and mappings inside of each other", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.MappingNode):
            _refuse_equal_keys(node)
        self._sizes[id(node)] = self._values - before
        return node

    def _count(self, more: int, event: Any) -> None:
        self._values += more
        if self._values > MOST_VALUES:
            raise _fault(f"more than {MOST_VALUES} values, what aliases repeat counted again", event)

    def _check(self, event: Any) -> None:
        """Bounds of a scalar, and tags: those of YAML's own types, where the text is of that type."""
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", *_TAGS):
            raise _fault(f"could not determine a constructor for the tag {tag!r}: settings are plain values", event)
        if not isinstance(event, yaml.ScalarEvent):
            return
        looks = self.resolve(yaml.ScalarNode, event.value, (True, False))
        if tag in {f"{_PREFIX}{name}" for name in _WRITTEN_OUT} and tag != looks:
            raise _fault(f"{_short(event.value)} is no {tag.removeprefix(_PREFIX)}; leave the tag out", event)
        is_number = (tag or (looks if event.implicit[0] else "")).endswith((":int", ":float"))
        most = MOST_DIGITS if is_number else MOST_CHARACTERS
        if len(event.value) > most:
            raise _fault(
                f"a {'number' if is_number else 'text'} of {len(event.value)} characters; {most} at most", event
            )


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"(0|-?[1-9][0-9]*)$"), list("-0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"([Tt]rue|TRUE|[Ff]alse|FALSE)$"), list("tTfF"))


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Text that a reader of YAML 1.1 or ``_Loader`` would take for something else is written in quotes."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Nothing is written as an alias."""
        return True


def read_yaml(text: str) -> Any:
    """YAML text as plain Python values: dicts, lists, text, numbers, booleans, None.

    Raises:
        YamlError: The text is no YAML, has two equal keys, a tag or a recursive alias, or is beyond a bound.
    """
    if len(text) > MOST_BYTES:
        raise YamlError(f"it has {len(text)} characters; {MOST_BYTES} are the most")
    try:
        return yaml.load(text, _Loader)  # _Loader is a SafeLoader: it builds no objects
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ) as error:  # escapes beyond Unicode are ValueError or OverflowError
        raise YamlError(" ".join(str(error).split())) from None


def read_yaml_file(path: Path) -> Any:
    """As ``read_yaml``, for a file.

    Raises:
        OSError: It cannot be read.
        YamlError: As ``read_yaml``, or the file is no UTF-8 or larger than ``MOST_BYTES``.
    """
    try:
        text = read_bounded(path, MOST_BYTES)
    except ValueError as error:
        raise YamlError(str(error)) from None
    return read_yaml(text)


def write_yaml(content: Any) -> str:
    """Plain values as YAML, in their order, one key a line."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6))


def _refuse_equal_keys(node: Any) -> None:
    first: dict[tuple[str, str], Any] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # it is refused when it is built: no list is a key
        before = first.setdefault((key.tag, key.value), key)
        if before is not key:
            lines = f"line {before.start_mark.line + 1} and again in line {key.start_mark.line + 1}"
            raise _fault(f"the key {_short(key.value)} stands in {lines}; keep one of the two", key)


def _short(text: str) -> str:
    return f'"{text}"' if len(text) <= 80 else f'"{text[:80]}..."'


def _fault(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """``at``: an event or a node."""
    return yaml.MarkedYAMLError(problem=f"{problem} (line {at.start_mark.line + 1}, column {at.start_mark.column + 1})")

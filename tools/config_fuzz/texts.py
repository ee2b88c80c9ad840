"""Text against readers of YAML: damaged, nested, growing, endless."""

import random
from collections.abc import Callable

TOKENS = (
    *(
        "- ",
        ": ",
        "? ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "&a ",
        "*a",
        "!!int ",
        "!!python/object:os.system ",
        "!x ",
        "|",
        ">",
        "'",
        '"',
    ),
    *(
        "%YAML 1.1\n",
        "---\n",
        "...\n",
        "#",
        "\t",
        "\n",
        "<<: ",
        "~",
        "\\",
        "\x00",
        "\x1b[2J",
        "\u2028",
        "\x85",
        "\ufeff",
        "é",
    ),
    *("${x}", "???", "true", "1e400", "9" * 200, "=", "@", "`", "\ud800"),
)


def damaged(draw: random.Random, content: bytes) -> bytes:
    """A file with a few bytes or lines changed."""
    text = content.decode()
    for _ in range(draw.randint(1, 4)):
        text = draw.choice(_DAMAGES)(draw, text)
    data = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.1 and data:
        data = bytearray(data)
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def _insert(draw: random.Random, text: str) -> str:
    at = draw.randint(0, len(text))
    return text[:at] + draw.choice(TOKENS) + text[at:]


def _cut(draw: random.Random, text: str) -> str:
    at = draw.randint(0, len(text))
    return text[:at] + text[at + draw.randint(1, 12) :]


def _truncate(draw: random.Random, text: str) -> str:
    return text[: draw.randint(0, len(text))]


def _twice(draw: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    at = draw.randrange(len(lines))
    return "".join([*lines[: at + 1], *lines[at : at + draw.randint(1, 5)], *lines[at + 1 :]])


def _move(draw: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    line = lines.pop(draw.randrange(len(lines)))
    lines.insert(draw.randint(0, len(lines)), line)
    return "".join(lines)


def _indent(draw: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    at = draw.randrange(len(lines))
    lines[at] = draw.choice([" ", "  ", "\t", "    "]) + lines[at]
    return "".join(lines)


_DAMAGES: tuple[Callable[[random.Random, str], str], ...] = (_insert, _insert, _cut, _truncate, _twice, _move, _indent)


def _size(draw: random.Random) -> int:
    return draw.choice([2, 10, 19, 21, 50, 150, 1000, 5000, 50_000])


def _laughs(draw: random.Random) -> str:
    levels, width = draw.randint(2, 30), draw.randint(2, 12)
    lines = ["{a0: &a0 1"]
    lines += [f"a{n}: &a{n} {{{', '.join(f'b{i}: *a{n - 1}' for i in range(width))}}}" for n in range(1, levels)]
    return ", ".join(lines) + "}"


def _merges(draw: random.Random) -> str:
    levels = draw.randint(2, 40)
    lines = ["{a0: &a0 {x: 1, y: 2}"]
    lines += [
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * draw.randint(1, 6))}], z{n}: 1}}" for n in range(1, levels)
    ]
    return ", ".join(lines) + "}"


SYNTAX: tuple[Callable[[random.Random], str], ...] = (
    _laughs,
    _merges,
    lambda draw: "[" * _size(draw),
    lambda draw: "[" * (n := _size(draw)) + "]" * n,
    lambda draw: "{a: " * (n := _size(draw)) + "1" + "}" * n,
    lambda draw: "- " * _size(draw) + "1",
    lambda draw: "? " * _size(draw) + "1",
    lambda draw: "&a [*a]",
    lambda draw: "&a {b: *a}",
    lambda draw: "&a {<<: *a}",
    lambda draw: "{[1, 2]: 3}",
    lambda draw: "{? {a: 1} : 2}",
    lambda draw: "{a: 1, a: 2}",
    lambda draw: "[" + "1, " * _size(draw) + "1]",
    lambda draw: "{" + ", ".join(f"k{n}: 1" for n in range(_size(draw))) + "}",
    lambda draw: "9" * _size(draw),
    lambda draw: "-0." + "9" * _size(draw) + "e" + "9" * draw.randint(1, 400),
    lambda draw: "'" + "x" * _size(draw) + "'",
    lambda draw: '"' + "\\e" * _size(draw) + '"',
    lambda draw: '"' + "\\u263a" * _size(draw) + '"',
    lambda draw: "#" * 300_000,
    lambda draw: "\n" * 250_000 + "1",
    lambda draw: " " * 250_000 + "1",
    lambda draw: "%TAG !a! tag:x,2000:\n" * draw.randint(1, 3) + "--- 1",
    lambda draw: "!" + "x" * _size(draw) + " 1",
    lambda draw: "&" + "x" * _size(draw) + " 1",
    lambda draw: "*" + "x" * _size(draw),
    lambda draw: "|\n" + "  x\n" * _size(draw),
    lambda draw: "".join(draw.choice(TOKENS) for _ in range(draw.randint(1, 60))),
    lambda draw: "".join(chr(draw.randrange(32, 127)) for _ in range(draw.randint(1, 200))),
    lambda draw: "x" * _size(draw) + ": 1",
    lambda draw: '{"\\e]0;title\\a": 1}',
)

_Files = tuple[dict[str, bytes], str]


def _chain(draw: random.Random, good: bytes) -> _Files:
    length = draw.choice([2, 19, 21, 60, 400])
    files = {f"b{n}.yaml": f"base: b{n + 1}\n".encode() for n in range(length)}
    files[f"b{length}.yaml"] = draw.choice([good, b"base: b0\n", b"base: b1\n"])
    return files, "b0.yaml"


def _odd_base(draw: random.Random, good: bytes) -> _Files:
    bases = [
        "run",
        "nowhere",
        "[a]",
        "{a: 1}",
        "5",
        "~",
        "''",
        '"a\\0b"',
        "n" * 300,
        "/" * 400,
        "../" * 2000,
        '"\\e[2J"',
        ".",
    ]
    bases += [
        "~/x",
        "~nobody/x",
        "quickstart",
        "tiny/dense",
        "'*'",
        "folder",
        "[" + "x," * 5000 + "]",
        "y" * 9000,
        "/dev/null",
    ]
    return {"run.yaml": b"base: " + draw.choice(bases).encode() + b"\n" + good, "folder.yaml/": b""}, "run.yaml"


def _bytes(draw: random.Random, good: bytes) -> _Files:
    text = good.decode()
    encoded = [
        text.encode("utf-16"),
        text.encode("utf-32"),
        b"\xef\xbb\xbf" + good,
        b"\xff" + good,
        good + b"\x80",
        b"\0" * 999,
    ]
    encoded += [
        draw.randbytes(draw.randint(1, 4000)),
        good + b"#" * 300_000,
        good.replace(b"\n", b"\r\n"),
        b"",
        b"\n",
        b"5",
    ]
    encoded += [
        b"- a\n",
        b"text",
        b"null",
        b"false",
        b"[]",
        good * 2,
        good + b"---\n" + good,
        b"%YAML 3.0\n---\n" + good,
    ]
    return {"run.yaml": draw.choice(encoded)}, "run.yaml"


def _odd_name(draw: random.Random, good: bytes) -> _Files:
    names = [
        "folder",
        "folder.yaml",
        "none.yaml",
        "n" * 300,
        "n" * 300 + ".yaml",
        "a/" * 3000 + "b.yaml",
        "",
        " ",
        ".",
        "/",
        "~",
    ]
    names += [
        "quickstart",
        "quikstart",
        "../run.yaml",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "\x1b[2J.yaml",
        "x" * 90_000,
    ]
    return {"run.yaml": good, "folder/": b"", "folder.yaml/": b""}, draw.choice(names)


WHOLE_FILES: tuple[Callable[[random.Random, bytes], _Files], ...] = (_chain, _odd_base, _bytes, _odd_name)

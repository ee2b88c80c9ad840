"""Paragraphs and tables on a page of 120 columns."""

import textwrap
from collections.abc import Sequence

from ultramem_megatron.units import format_seconds

WIDTH = 120


def paragraph(text: str, indent: str = "") -> str:
    """Wrapped; further lines are indented twice as far as the first."""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent * 2, break_on_hyphens=False)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """First and last column to the left, the numbers between them to the right."""
    first_width, *middle_widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for first, *middle, last in rows:
        numbers = (cell.rjust(width) for cell, width in zip(middle, middle_widths, strict=True))
        lines.append("  ".join(["", first.ljust(first_width), *numbers, last]).rstrip())
    return "\n".join(lines)


def short_seconds(seconds: float) -> str:
    """``4.82 s``; beyond 100 seconds and below one as ``format_seconds``."""
    return f"{seconds:.2f} s" if 1 <= seconds < 100 else format_seconds(seconds)

"""``ultramem doctor``: what is installed and usable here, and what a run would use."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ultramem_launch.preflight import Report

MARKS = {"ok": "ok", "absent": "-", "problem": "PROBLEM"}
STYLES = {"ok": "green", "absent": "dim", "problem": "bold red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="The findings as a JSON object.")] = False) -> None:
    """What is installed and usable on this machine, and what a run here would use.

    Exit code 0 when a run could start, 2 when not: then the reason and the remedy are on standard error.

    Example: ultramem doctor --json
    """
    from ultramem_launch.preflight import inspect_machine
    from ultramem_megatron.errors import ConfigError

    report = inspect_machine(Path.cwd())
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    elif sys.stdout.isatty():
        _print_tables(report)
    else:
        print(_text(report))
    if report.problems:
        raise ConfigError("\n".join(report.problems))


def _text(report: "Report") -> str:
    lines: list[str] = []
    section = None
    for row in report.rows:
        if row.section is not section:
            section = row.section
            lines += ["", section] if lines else [section]
        lines.append(f"  {row.name:<32}{MARKS[row.status]:<9}{row.found}")
    return "\n".join(lines)


def _print_tables(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("name", "status", "found"):
        table.add_column(column, overflow="fold")
    section = None
    for row in report.rows:
        if row.section is not section:
            section = row.section
            table.add_row(Text(f"\n{section}" if table.row_count else section, "bold"))
        table.add_row(f"  {row.name}", Text(MARKS[row.status], STYLES[row.status]), Text(row.found))
    Console().print(table)

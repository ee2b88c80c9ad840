"""How far a long step is, on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ultramem_megatron.data.progress import Progress


@contextmanager
def show_progress() -> "Iterator[Progress]":
    """Bars on a terminal, else a line when a step is done; on stderr, so that ``--json`` stays clean."""
    if not sys.stderr.isatty():
        yield _print_step
        return
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, fraction: float) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=1.0)
            bars.update(tasks[what], completed=fraction)

        yield show


def _print_step(what: str, fraction: float) -> None:
    if fraction == 0.0:
        print(f"{what} ...", file=sys.stderr, flush=True)

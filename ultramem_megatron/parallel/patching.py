"""Changes to megatron-core, each an entry of a table: what it does, what we put there, and how to take it back."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Undo = Callable[[], None]
Apply = Callable[[], list[Undo]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One thing that megatron-core does and that does not work here."""

    name: str
    """Short and unique; tests and messages use it."""
    why: str
    """What megatron-core 0.16.1 does, and where (files are relative to megatron/core)."""
    instead: str
    """What stands in its place."""
    apply: Apply
    """Puts it there; returns what takes it away again."""


_installed: dict[str, list[Undo]] = {}  # a patch of the process is process state: entry name -> how to take it back


def apply_entries(entries: Iterable[Entry]) -> None:
    """Put each entry in place; one that is there already stays as it is. Costs the import of megatron-core."""
    importlib.import_module("megatron.core")
    for entry in entries:
        if entry.name not in _installed:
            _installed[entry.name] = entry.apply()


def uninstall() -> None:
    """Take everything back, newest first (for tests)."""
    for name in reversed(list(_installed)):
        for undo in reversed(_installed.pop(name)):
            undo()


def put(owner: Any, attribute: str, value: Any) -> Undo:
    """Set ``owner.attribute``; what was inherited or absent before is so again afterwards."""
    if attribute in vars(owner):
        before = vars(owner)[attribute]
        setattr(owner, attribute, value)
        return lambda: setattr(owner, attribute, before)
    setattr(owner, attribute, value)
    return lambda: delattr(owner, attribute)

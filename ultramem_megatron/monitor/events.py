"""What happens to a run, beside its numbers: ``events.jsonl``, one JSON object a line, never cut back."""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

EVENTS_FILE = "events.jsonl"

logger = logging.getLogger(__name__)


class EventLog:
    """Appends events and prints them; does nothing on ranks that do not report."""

    def __init__(self, run_dir: Path, *, reports: bool) -> None:
        self._path, self._reports = run_dir / EVENTS_FILE, reports
        if reports and (torn := _torn_lines(self._path)):
            logger.warning("%s: line(s) %s are torn, and passed over", self._path, ", ".join(map(str, torn)))

    def write(self, step: int, event: str, words: str, details: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Append ``{"time", "step", "event", "words"}`` and the details.

        Args:
            step: Steps done.
            event: A short name, such as ``bad_step``.
            words: One sentence.
            details: What it says, as plain values for programs.
        """
        if not self._reports:
            return
        record = {"time": round(time.time(), 3), "step": step, "event": event, "words": words, **details}
        with self._path.open("ab+") as lines:
            lines.write(_end_of_torn_line(lines) + json.dumps(record).encode() + b"\n")
        print(f"{event}: {words}", flush=True)


def read_events(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The events of a run in order, and the numbers of lines that a kill or a lost machine has torn, from 1."""
    events: list[dict[str, Any]] = []
    torn: list[int] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            events.append(event)
        elif line.strip():
            torn.append(number)
    return events, torn


def _torn_lines(path: Path) -> list[int]:
    return read_events(path)[1] if path.is_file() else []


def _end_of_torn_line(lines: BinaryIO) -> bytes:
    """A newline if the last line has none, or the next event would be lost with it."""
    if lines.seek(0, os.SEEK_END) == 0:
        return b""
    lines.seek(-1, os.SEEK_END)
    return b"" if lines.read(1) == b"\n" else b"\n"

"""What happens to a run, beside its numbers: ``events.jsonl``, one JSON object a line, never cut back."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

EVENTS_FILE = "events.jsonl"


class EventLog:
    """Appends events and prints them; does nothing on ranks that do not report."""

    def __init__(self, run_dir: Path, *, reports: bool) -> None:
        self._path, self._reports = run_dir / EVENTS_FILE, reports

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
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        print(f"{event}: {words}", flush=True)

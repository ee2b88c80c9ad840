"""``events.jsonl`` survives a kill in the middle of a line."""

import json
from pathlib import Path

import pytest

from ultramem_megatron.monitor.events import EVENTS_FILE, EventLog, read_events


@pytest.mark.parametrize("torn", [b'{"time": 1.0, "st', b"\x00\x00\x00", b'"a word"\n', b"[" * 100_000])
def test_an_event_after_a_torn_line_is_not_lost_with_it(
    tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / EVENTS_FILE
    path.write_bytes(b'{"step": 1}\n' + torn)
    log = EventLog(tmp_path, reports=True)
    assert f"{path}: line(s) 2 are torn, and passed over" in caplog.text
    log.write(5, "bad_step", "words")
    log.write(6, "bad_step", "more")
    events, lines = read_events(path)
    assert [event["step"] for event in events] == [1, 5, 6]
    assert lines == [2]


def test_a_new_log_has_whole_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path, reports=True)
    log.write(1, "bad_step", "one")
    log.write(2, "bad_step", "two")
    assert [json.loads(line)["words"] for line in (tmp_path / EVENTS_FILE).read_text().splitlines()] == ["one", "two"]
    EventLog(tmp_path / "elsewhere", reports=False).write(1, "bad_step", "one")
    assert [path.name for path in tmp_path.iterdir()] == [EVENTS_FILE]

"""The JSONL file: spelling of non-finite numbers, torn lines."""

import json
import logging
import math
from pathlib import Path

import pytest

from ultramem_megatron.errors import DataError
from ultramem_megatron.monitor.records import decode_record, encode_record, keep_records_until, read_records


def steps(path: Path) -> list[float]:
    return [record["step"] for record in read_records(path)]


def test_a_record_comes_back_as_it_was() -> None:
    values = {"a/b": 0.1, "a/inf": math.inf, "a/minus": -math.inf}
    assert decode_record(encode_record(3, 12.5, values)) == {"step": 3, "time": 12.5, **values}


def test_non_finite_numbers_are_strict_json() -> None:
    line = encode_record(1, 0.0, {"a/b": math.nan, "a/c": -math.inf})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    plain = json.loads(line, parse_constant=refuse)
    assert plain["a/b"] == "NaN" and plain["a/c"] == "-Infinity"
    decoded = decode_record(line)
    assert decoded is not None and math.isnan(decoded["a/b"])


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 3, "ti', b"", b"\0\0\0\0", b"\xff\xfe", b"3", b'{"time": 1.0}', b'{"step": 3, "a/b": [1]}'],
    ids=repr,
)
def test_torn_lines_are_no_records(torn: bytes) -> None:
    assert decode_record(torn) is None


@pytest.mark.parametrize("torn", [b'{"step": 3, "ti', b"\0\0\0\0"], ids=repr)
def test_a_torn_last_line_is_dropped_with_a_warning(
    tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = encode_record(1, 0.0, {"a/b": 1.0}) + encode_record(2, 0.0, {"a/b": 2.0})
    path.write_bytes(whole + torn)
    assert steps(path) == [1, 2]

    with caplog.at_level(logging.WARNING):
        last = keep_records_until(path, 2)

    assert path.read_bytes() == whole
    assert whole.endswith(last) and decode_record(last) == {"step": 2, "time": 0.0, "a/b": 2.0}
    assert "dropped 1 unreadable line" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_whole_record_that_lost_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = encode_record(1, 0.0, {"a/b": 1.0})
    path.write_bytes(whole.rstrip())
    assert keep_records_until(path, 5) == whole
    assert path.read_bytes() == whole


def test_nothing_to_keep_without_a_file(tmp_path: Path) -> None:
    assert keep_records_until(tmp_path / "metrics.jsonl", 5) == b""
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl does not exist; name the folder of a run"):
        list(read_records(tmp_path / "metrics.jsonl"))


def test_torn_lines_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "time": 1.0}\n{"step": 2, "ti\n' + b"[" * 100_000 + b'\n{"step": 3, "time": 1.0}\n')
    assert steps(path) == [1, 3]
    assert f"{path}: line(s) 2, 3 are torn, and passed over" in caplog.text

"""The JSONL file of a run: one JSON object a line, one line a step.

    {"step": 10, "time": 1764000000.0, "train/loss": 6.25, "train/gradient_norm": "NaN"}

JSON has no NaN and no infinity. They stand there as the strings "NaN", "Infinity" and "-Infinity" (protobuf's
convention), so that any JSON reader takes the file and ``float`` in Python takes the strings.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from ultramem_megatron.errors import DataError
from ultramem_megatron.files import remove_leftovers, written_whole

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

logger = logging.getLogger(__name__)


def encode_record(step: int, seconds: float, values: Mapping[str, float]) -> bytes:
    """One line of the file, newline included.

    Args:
        step: Optimizer step, from 1.
        seconds: Time of the record, seconds since 1970.
        values: Numbers by full name, finite or not.
    """
    numbers = {name: value if math.isfinite(value) else _spelled(value) for name, value in values.items()}
    return json.dumps({"step": step, "time": round(seconds, 3), **numbers}, allow_nan=False).encode() + b"\n"


def _spelled(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def decode_record(line: bytes) -> dict[str, float] | None:
    """``step`` (an int), ``time`` and the numbers of a line; None for a torn one."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            return None
        return {name: value if name == "step" else float(value) for name, value in record.items()}
    except (ValueError, TypeError, RecursionError):  # no JSON, no UTF-8 (a lost node leaves zero bytes), or no number
        return None


def read_records(path: Path) -> Iterator[dict[str, float]]:
    """The records of a run in order, each with ``step`` and ``time``; lines torn by a kill are named and left out.

    Raises:
        DataError: The file does not exist.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; name the folder of a run that has taken a step (it holds {METRICS_FILE})"
        )
    torn: list[int] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            record = decode_record(line)
            if record is None:
                torn.append(number)
            else:
                yield record
    if torn:
        some = ", ".join(map(str, torn[:10])) + (", ..." if len(torn) > 10 else "")
        logger.warning("%s: line(s) %s are torn, and passed over", path, some)


def keep_records_until(path: Path, last_step: int) -> bytes:
    """Drop what stands after ``last_step``, for a run that resumes there, and lines torn by a kill.

    The file is replaced in one piece: a kill in the middle leaves the old one. Nothing happens without a file.

    Returns:
        The last line kept, with its newline; empty if none is.
    """
    if not path.is_file():
        return b""
    remove_leftovers(path.parent, path.name)
    unreadable = 0
    last_line = b""
    with path.open("rb") as lines, written_whole(path) as kept:
        for line in lines:
            record = decode_record(line)
            if record is None:
                unreadable += 1
            elif record["step"] <= last_step:
                last_line = line if line.endswith(b"\n") else line + b"\n"
                kept.write(last_line)
    if unreadable:
        logger.warning("%s: dropped %d unreadable line(s), torn when the run was killed", path, unreadable)
    return last_line

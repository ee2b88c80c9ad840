"""Where numbers go: a JSONL file, TensorBoard, the console. All of them open on the reporting rank alone."""

import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from ultramem_megatron.metrics.catalogue import LOSS, STEP_SECONDS
from ultramem_megatron.monitor.console_line import training_line, validation_line
from ultramem_megatron.monitor.records import decode_record, encode_record, keep_records_until
from ultramem_megatron.monitor.throughput import mean, seconds_left

_ETA_WINDOW = 50

# Tab "Custom Scalars": charts that put curves side by side which belong together. Patterns match full names.
_CHARTS = {
    "communication": {
        "forward bytes, predicted and measured": ["Multiline", [r"communication/(predicted_)?forward_bytes.*"]],
        "backward bytes, predicted and measured": ["Multiline", [r"communication/(predicted_)?backward_bytes.*"]],
        "seconds, predicted and measured": ["Multiline", [r"communication/(predicted_)?message_seconds.*"]],
        "seconds waited for": ["Multiline", [r"communication/message_exposed_seconds.*"]],
    },
    "loss": {"training and validation": ["Multiline", [r"train/loss", r"validation/loss.*"]]},
    "memory layers": {
        "slot usage": ["Multiline", [r"memory/slot_usage_fraction.*"]],
        "scores": ["Multiline", [r"memory/(top1|mean)_score.*"]],
        "output standard deviation": ["Multiline", [r"memory/output_std.*"]],
    },
}


class MetricSink(ABC):
    """Takes the numbers of a step. Steps come in rising order; several writes may belong to one step."""

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of optimizer step ``step`` (from 1), by full name, finite or not."""

    def text(self, step: int, name: str, markdown: str) -> None:  # noqa: B027  # optional on purpose
        """Take a text, such as the config of the run. A sink for numbers alone lets it pass."""

    @abstractmethod
    def close(self) -> None:
        """Write what is outstanding and let go of files."""


class JsonlSink(MetricSink):
    """One JSON object a step, flushed at once, in a file that a resumed run continues (see ``records``)."""

    def __init__(self, path: Path, resume_step: int = 0, clock: Callable[[], float] = time.time) -> None:
        """Open ``path`` to go on after ``resume_step``.

        Args:
            path: Made if missing, folders included.
            resume_step: Last step whose records stay; later ones are dropped, so each step stands there once.
            clock: Seconds since 1970.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        last_line = keep_records_until(path, resume_step)
        record = decode_record(last_line) or {"step": resume_step}
        self._step = int(record["step"])
        self._values = {name: value for name, value in record.items() if name not in ("step", "time")}
        self._file = path.open("ab")
        self._line_start = self._file.tell() - len(last_line)
        self._clock = clock

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the record of ``step``; numbers of the step just written join its record."""
        assert step >= self._step, f"step {step} comes after step {self._step}"
        if step == self._step and self._values:
            self._file.truncate(self._line_start)  # appending goes on at the new end
            self._values |= values
        else:
            self._line_start = self._file.tell()
            self._step, self._values = step, dict(values)
        self._file.write(encode_record(step, self._clock(), self._values))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink(MetricSink):
    """Event files for TensorBoard, with charts of predicted against measured communication."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        """Open a new event file in ``folder``; TensorBoard then hides what older ones say after ``resume_step``."""
        # Here and not above: it takes a second, and only the reporting rank needs it
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1)
        self._writer.add_custom_scalars(_CHARTS)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve, in fp32 (what every reader of event files knows); JSONL has the full number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # After each step: what a kill takes from the writer's queue is missing for ever, as the resumed run does
        # not repeat the steps before its checkpoint
        self._writer.flush()

    def text(self, step: int, name: str, markdown: str) -> None:
        """Show ``markdown`` in the tab "Text"."""
        self._writer.add_text(name, markdown, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class ConsoleSink(MetricSink):
    """A line every ``log_interval`` steps, at the first and at the last one; a line for each validation.

    Coloured on a terminal; in a log file plain text, never wrapped.
    """

    def __init__(self, total_steps: int, log_interval: int, stream: TextIO | None = None) -> None:
        """Print to ``stream``, standard output if None."""
        self._total_steps = total_steps
        self._log_interval = log_interval
        self._console = Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._step_seconds: deque[float] = deque(maxlen=_ETA_WINDOW)
        self._any_line = False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Print what is due at ``step``."""
        if STEP_SECONDS.name in values:
            self._step_seconds.append(values[STEP_SECONDS.name])
        if LOSS.name in values and self._is_due(step):
            left = seconds_left(self._total_steps - step, mean(self._step_seconds)) if self._step_seconds else None
            self._print(training_line(step, self._total_steps, values, left), style="")
        validation = validation_line(step, self._total_steps, values)
        if validation is not None:
            self._print(validation, style="bold green")

    def _is_due(self, step: int) -> bool:
        return not self._any_line or step % self._log_interval == 0 or step == self._total_steps

    def _print(self, line: str, style: str) -> None:
        self._any_line = True
        text = Text(line, style=style)
        text.highlight_regex(r"(?<!\S)-?(nan|inf)\b", style="bold red")
        self._console.print(text)
        self._console.file.flush()

    def close(self) -> None:
        """Nothing is held back, and the stream is not ours to close."""

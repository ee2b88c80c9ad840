"""One step's numbers to all sinks. Ranks that do not report have a publisher without sinks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from ultramem_megatron.metrics.catalogue import catalogue_table
from ultramem_megatron.monitor.records import METRICS_FILE, TENSORBOARD_FOLDER
from ultramem_megatron.monitor.sinks import ConsoleSink, JsonlSink, MetricSink, TensorBoardSink


class Publisher:
    """Hands numbers and texts on to its sinks; a context manager that closes them."""

    def __init__(self, sinks: Sequence[MetricSink] = ()) -> None:
        self._sinks = tuple(sinks)

    def publish(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of ``step`` (from 1, rising), by full name. Validation may follow in a second call."""
        plain = {name: float(value) for name, value in values.items()}
        for sink in self._sinks:
            sink.write(step, plain)

    def text(self, step: int, name: str, markdown: str) -> None:
        """Show a text with the run, such as its config or plan."""
        for sink in self._sinks:
            sink.text(step, name, markdown)

    def close(self) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_publisher(
    run_dir: Path, *, reports: bool, total_steps: int, log_interval: int, resume_step: int = 0
) -> Publisher:
    """The publisher of this rank: JSONL, TensorBoard and console in ``run_dir`` if it reports, else no sinks.

    Args:
        run_dir: Folder of the run; gets ``metrics.jsonl`` and ``tensorboard/``.
        reports: True on exactly one rank.
        total_steps: Steps of the whole run.
        log_interval: Steps between console lines.
        resume_step: Step of the checkpoint that the run goes on from, 0 at the start; later records are dropped.
    """
    if not reports:
        return Publisher()
    publisher = Publisher(
        [
            JsonlSink(run_dir / METRICS_FILE, resume_step),
            TensorBoardSink(run_dir / TENSORBOARD_FOLDER, resume_step),
            ConsoleSink(total_steps, log_interval),
        ]
    )
    publisher.text(resume_step, "metrics", catalogue_table())
    return publisher

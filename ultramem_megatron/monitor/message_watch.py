"""Measured beside predicted: bytes and seconds of each collective of a memory layer, in the steps that are reported."""

from collections.abc import Mapping

from ultramem_megatron.memory.value_table import ValueTable
from ultramem_megatron.metrics.catalogue import (
    MESSAGE_BYTES,
    MESSAGE_EXPOSED_SECONDS,
    MESSAGE_SECONDS,
    PREDICTED_MESSAGE_BYTES,
    PREDICTED_MESSAGE_SECONDS,
)
from ultramem_megatron.metrics.metric import Recorder
from ultramem_megatron.parallel.channel import ACROSS, INSIDE
from ultramem_megatron.parallel.message_meter import MessageMeter
from ultramem_megatron.parallel.timeline import Timeline
from ultramem_megatron.planning.comm_cost import PRE_VALUES
from ultramem_megatron.planning.plan import PredictedMessage

# What the partitions call a message -> what the planner calls it, forward and backward.
PLANNED_NAMES = {
    "sizes": ("split_sizes", ""),
    "row numbers": ("row_numbers", ""),
    "blocks": ("blocks", ""),
    "scores": ("scores", "score_gradients"),
    "rows": ("rows", "row_gradients"),
    "partial sums": ("partial_sums", "pooled_gradients"),
    "pieces": ("pooled_pieces", "pooled_gradients"),
    "vectors": ("vectors", "vector_gradients"),
    "products": ("products", "product_gradients"),
    "partial products": ("products", "product_gradients"),
}


class MessageWatch:
    """Follows the tables of one layer through the steps that are reported; else it costs nothing."""

    def __init__(
        self, tables: list[ValueTable], label: str, recorder: Recorder, predicted: Mapping[str, PredictedMessage]
    ) -> None:
        """``tables``: as ``MemoryLayer`` has them; ``predicted``: of one micro-batch, as the plan has them."""
        self.label, self.recorder, self.predicted = label, recorder, predicted
        self.tables: list[tuple[ValueTable, str]] = list(zip(tables, ("", PRE_VALUES), strict=False))
        self.meters: list[MessageMeter] = []

    def begin(self) -> None:
        """Before a step that will be reported."""
        self.meters = []
        for table, _ in self.tables:
            meter = MessageMeter(table.partition.channel.traffic, table.weight.device)
            table.watch(meter)
            self.meters.append(meter)

    def report(self, micro_batches: int) -> None:
        """Record what the step measured, and what was predicted for it."""
        for (table, prefix), meter in zip(self.tables, self.meters, strict=True):
            table.watch(Timeline())
            for (name, backward), total in meter.take().items():
                message = planned_name(name, backward=backward, prefix=prefix)
                label = f"{self.label}/{message}"
                self.recorder.record(MESSAGE_BYTES, total.num_bytes / micro_batches, label)
                self.recorder.record(MESSAGE_SECONDS, total.seconds / micro_batches, label)
                self.recorder.record(MESSAGE_EXPOSED_SECONDS, total.exposed_seconds / micro_batches, label)
        self.meters = []
        for message, expected in self.predicted.items():
            label = f"{self.label}/{message}"
            self.recorder.record(PREDICTED_MESSAGE_BYTES, expected.num_bytes, label)
            self.recorder.record(PREDICTED_MESSAGE_SECONDS, expected.seconds, label)


def planned_name(name: str, *, backward: bool, prefix: str) -> str:
    """``forward.rows``, of a grid ``forward.across_rows``: as the plan has it."""
    for place in (INSIDE, ACROSS):
        if name.startswith(place):
            name, prefix = name.removeprefix(place), place.replace(" ", "_") + prefix
    planned = PLANNED_NAMES[name][backward]
    assert planned, f"{name} have no gradient"
    return f"{'backward' if backward else 'forward'}.{prefix}{planned}"

"""Watches one memory layer: what it reads, how large its scores and outputs are, what it sends."""

import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.memory.layer import MemoryLayer
from ultramem_megatron.metrics.catalogue import (
    AUXILIARY_LOSS,
    BACKWARD_BYTES,
    FORWARD_BYTES,
    MEAN_SCORE,
    OUTPUT_STD,
    OWNER_SKEW,
    SINGULAR_VALUE_RATIO,
    SLOT_USAGE_FRACTION,
    TOP1_SCORE,
)
from ultramem_megatron.metrics.metric import Recorder
from ultramem_megatron.monitor.memory_health import (
    SlotUsage,
    mean_score,
    output_std,
    owner_skew,
    singular_value_ratio,
    top1_score,
)
from ultramem_megatron.parallel.partition.base import Picks


class LayerObserver:
    """Follows a layer from one report to the next; reads between reports only mark a bitmap."""

    def __init__(self, layer: MemoryLayer, label: str, recorder: Recorder, stage: dist.ProcessGroup) -> None:
        """Attach to ``layer``; ``stage`` are the ranks whose tokens read its table."""
        self.layer, self.label, self.recorder, self.stage = layer, label, recorder, stage
        self.usage = SlotUsage(layer.table.partition.table.num_rows, layer.table.weight.device)
        channel = layer.table.partition.channel
        self.traffic, self.group = channel.traffic, channel.group
        self.traffic.reset()  # another observer may have been there before a run went back
        self.forward_passes = self.backward_passes = 0
        layer.observer = self

    def __call__(self, picks: Picks, output_sbD: Tensor) -> None:
        """One forward pass; of validation only the traffic counts."""
        self.forward_passes += 1
        if not self.layer.training:
            return
        self.backward_passes += 1
        self.usage.update(picks.rows_TK)
        if self.recorder.enabled:
            self.recorder.record(TOP1_SCORE, top1_score(picks.scores_hTK), self.label)
            self.recorder.record(MEAN_SCORE, mean_score(picks.scores_hTK), self.label)
            self.recorder.record(OUTPUT_STD, output_std(output_sbD), self.label)

    def report(self) -> None:
        """Record what gathered since the last report. Collective over ``stage``, and over the owners of the table."""
        self.recorder.record(SLOT_USAGE_FRACTION, self.usage.fraction(self.stage), self.label)
        self.recorder.record(FORWARD_BYTES, self.traffic.forward_bytes / max(1, self.forward_passes), self.label)
        self.recorder.record(BACKWARD_BYTES, self.traffic.backward_bytes / max(1, self.backward_passes), self.label)
        skew = owner_skew(self.traffic.served_requests, self.group, self.layer.table.weight.device)
        if not skew.isnan():
            self.recorder.record(OWNER_SKEW, skew, self.label)
        core = self.layer.summed_core
        if core is not None:
            self.recorder.record(SINGULAR_VALUE_RATIO, singular_value_ratio(core), self.label)
        penalty = self.layer.penalty()
        if penalty is not None:
            self.recorder.record(AUXILIARY_LOSS, penalty, self.label)
        self.usage.reset()
        self.traffic.reset()
        self.forward_passes = self.backward_passes = 0

"""Seconds of an optimizer step: the dense blocks, what of the lookups they do not hide, and the slowest stage's turn.

Left out, because it is the same for every candidate: tensor- and data-parallel traffic of the dense model, messages
between stages, the optimizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.config.training import Precision, Recompute
from ultramem_megatron.planning.lookup_time import LookupTime
from ultramem_megatron.planning.model_size import (
    FLOPS_PER_PARAMETER,
    attention_parameters,
    embedding_parameters,
    expert_parameters,
    memory_dense_parameters,
    mlp_parameters,
)
from ultramem_megatron.planning.profile import ClusterProfile
from ultramem_megatron.planning.stages import stages_of
from ultramem_megatron.planning.workload import Workload

BACKWARD_PER_FORWARD = 2
"""Matrix products: one gradient of the input, one of the weights."""


@dataclass(frozen=True, slots=True)
class Window:
    """Dense work beside which the lookup of one span may run, in one micro-batch."""

    stage: int
    """Pipeline rank that does the lookup."""
    forward_seconds: float
    backward_seconds: float


@dataclass(frozen=True, slots=True)
class DenseTime:
    """The run without lookups: the same for every candidate, so calculated once."""

    stage_seconds: tuple[float, ...]
    """Forward and backward of one micro-batch, by pipeline rank."""

    windows: tuple[Window, ...]
    """By table."""

    turns: float
    """Times that the slowest stage's micro-batch stands in the way: m + (p - 1) / v under 1F1B."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Of one optimizer step."""

    step_seconds: float
    exposed_seconds: float
    """Part of it for which the dense blocks wait for lookups, on the stage where most do."""
    busy_seconds: float
    """What the lookups and the synchronisation of that stage take, hidden or not."""


def block_forward_seconds(config: RunConfig, workload: Workload, profile: ClusterProfile) -> float:
    """One block, one micro-batch, on one rank: matrix products and the scores of causal attention.

    Attention has 2 s D operations a token for both of its products, the masked half left out (arXiv 2205.05198,
    appendix A, without its factor for the whole square).
    """
    model = config.model
    parameters = attention_parameters(model) + mlp_parameters(model)
    parameters += model.experts_per_token * expert_parameters(model) if model.experts else 0
    flops_per_token = FLOPS_PER_PARAMETER * parameters + 2 * model.seq_length * model.hidden
    tokens = workload.micro_batch_tokens / config.parallelism.tensor
    return tokens * flops_per_token / gemm_flops_per_second(config, profile)


def gemm_flops_per_second(config: RunConfig, profile: ClusterProfile) -> float:
    """What matrix products reach in the run's precision."""
    rates = profile.gemm
    is_bf16 = config.training.precision is Precision.BF16
    return rates.bf16_flops_per_second if is_bf16 else rates.fp32_flops_per_second


def dense_time(config: RunConfig, workload: Workload, profile: ClusterProfile) -> DenseTime:
    """Everything of a step that no candidate changes."""
    stages, model = stages_of(config), config.model
    block = block_forward_seconds(config, workload, profile)
    rate = gemm_flops_per_second(config, profile)
    # queries, keys and projections of a memory layer work on this rank's share of the tokens, with whole weights
    layer = workload.lookup.tokens * FLOPS_PER_PARAMETER * memory_dense_parameters(config) / rate
    logits = FLOPS_PER_PARAMETER * embedding_parameters(model) / config.parallelism.tensor
    forward = [stages.chunks * stages.blocks * block] * stages.pipeline
    for rank, tables in enumerate(workload.tables_of_stage):
        forward[rank] += tables * layer
    again = 1 if config.training.recompute is Recompute.FULL else 0
    seconds = [(1 + BACKWARD_PER_FORWARD + again) * one for one in forward]
    seconds[-1] += (1 + BACKWARD_PER_FORWARD) * workload.micro_batch_tokens * logits / rate
    windows = []
    for span in config.memory.span_list:
        stage = stages.of_block(span.read)
        # a result that goes on to the next stage has to be there when the hidden state leaves
        blocks = min(span.add, stages.blocks_of(stage)[-1]) - span.read
        forward_seconds = blocks * block
        backward_seconds = (BACKWARD_PER_FORWARD + again) * forward_seconds
        windows.append(Window(stage % stages.pipeline, forward_seconds, backward_seconds))
    turns = workload.micro_batches + (stages.pipeline - 1) / stages.chunks
    return DenseTime(tuple(seconds), tuple(windows), turns)


class Timed(Protocol):
    """Whatever has the times of a lookup."""

    @property
    def forward_seconds(self) -> float:
        """Of the forward pass."""

    @property
    def backward_seconds(self) -> float:
        """Of the backward pass."""


def exposed_seconds(lookup: Timed, window: Window, overlap_fraction: float) -> float:
    """What of a lookup the blocks of its span do not hide, forward and backward."""
    forward = lookup.forward_seconds - overlap_fraction * window.forward_seconds
    backward = lookup.backward_seconds - overlap_fraction * window.backward_seconds
    return max(0.0, forward) + max(0.0, backward)


def step_time(
    dense: DenseTime, lookups: Sequence[LookupTime], sync_seconds: float, overlap_fraction: float
) -> StepTime:
    """The critical path of a step.

    Args:
        dense: The run without lookups.
        lookups: Of each table, in one micro-batch.
        sync_seconds: Of one table's copies, once a step; nothing hides it.
        overlap_fraction: Share of the dense work beside which a lookup can hide; 0 when it runs by itself.
    """
    exposed = [0.0] * len(dense.stage_seconds)
    busy, tables = list(exposed), [0] * len(exposed)
    for window, lookup in zip(dense.windows, lookups, strict=True):
        exposed[window.stage] += exposed_seconds(lookup, window, overlap_fraction)
        busy[window.stage] += lookup.forward_seconds + lookup.backward_seconds
        tables[window.stage] += 1
    slowest = max(own + waiting for own, waiting in zip(dense.stage_seconds, exposed, strict=True))
    sync = max(tables) * sync_seconds
    return StepTime(
        step_seconds=dense.turns * slowest + sync,
        exposed_seconds=dense.turns * (slowest - max(dense.stage_seconds)) + sync,
        busy_seconds=dense.turns * max(busy) + sync,
    )

"""Micro-batches through megatron-core's schedule, and the mean loss of all ranks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from ultramem_megatron.data.batch import Batch
from ultramem_megatron.training.state import TrainState


def run_micro_batches(state: TrainState, micro_batches: list[Batch], *, forward_only: bool) -> float:
    """Run one global batch's share of this rank; gradients end up reduced in the buffers. Collective.

    Args:
        state: The run.
        micro_batches: This rank's (``data.batch.Batch``).
        forward_only: No gradients.

    Returns:
        Mean loss in nats per token over the micro-batches of all data-parallel ranks, the same on every rank.
    """
    training, model = state.config.training, state.config.model
    # the interleaved schedule reads each chunk's batches from an iterator of its own
    iterators: list[Iterator[Batch]] = [iter(micro_batches) for _ in state.ddp]
    single = len(state.ddp) == 1
    state.messages.begin(len(micro_batches))
    outputs = get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=iterators[0] if single else iterators,
        model=state.ddp[0] if single else state.ddp,
        num_microbatches=len(micro_batches),
        seq_length=model.seq_length,
        micro_batch_size=training.micro_batch_size,
        decoder_seq_length=model.seq_length,
        forward_only=forward_only,
        p2p_communicator=state.messages,
        pg_collection=state.groups.mcore,
    )
    return _mean_over_ranks(state, outputs)


def _forward_step(batches: Iterator[Batch], chunk: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
    batch = next(batches)
    device = next(chunk.parameters()).device
    tokens, positions, labels = (batch[name].to(device) for name in ("tokens", "position_ids", "labels"))
    return chunk(tokens, positions, None, labels=labels), _mean_loss


def _mean_loss(losses_bs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = losses_bs.float().mean()
    # a copy: the schedule divides the loss in place by the number of micro-batches
    return loss, {"loss": loss.detach().clone()}


def _mean_over_ranks(state: TrainState, outputs: list[dict[str, Tensor]]) -> float:
    groups = state.groups
    total = torch.zeros(1, dtype=torch.float64, device=groups.device)
    if groups.is_last_stage:
        # every tensor-parallel rank has the same loss
        total += sum(out["loss"].double() for out in outputs) / (len(outputs) * groups.data_ranks * groups.tp.size())
    dist.all_reduce(total)
    return total.item()

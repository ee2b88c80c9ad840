"""Loss on held-out text, each data source on its own."""

from collections.abc import Mapping
from itertools import islice

import torch

from ultramem_megatron.data.token_source import TokenSource
from ultramem_megatron.metrics.catalogue import VALIDATION_LOSS
from ultramem_megatron.monitor.publish import Publisher
from ultramem_megatron.training.forward_backward import run_micro_batches
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.state import StepResult, TrainState


@torch.no_grad()
def validate(state: TrainState, sources: Mapping[str, TokenSource]) -> dict[str, float]:
    """Mean loss of the first ``eval_batches`` global batches of each source, and the mean over sources. Collective."""
    for ddp in state.ddp:
        ddp.eval()
    losses = {name: _source_loss(state, source) for name, source in sources.items()}
    for ddp in state.ddp:
        ddp.train()
    named = {VALIDATION_LOSS.full_name(name): loss for name, loss in losses.items()}
    return {VALIDATION_LOSS.name: sum(losses.values()) / len(losses), **named}


def _source_loss(state: TrainState, source: TokenSource) -> float:
    batches = islice(state.batches(source), state.config.training.eval_batches)
    losses = [run_micro_batches(state, batch, forward_only=True) for batch in batches]
    return sum(losses) / len(losses)


class Validate(Hook):
    """Every ``training.eval_interval`` steps, and after the last."""

    def __init__(self, publisher: Publisher, sources: Mapping[str, TokenSource]) -> None:
        self.publisher, self.sources = publisher, sources

    def after_step(self, state: TrainState, result: StepResult) -> None:
        training = state.config.training
        if result.step % training.eval_interval == 0 or result.step == training.steps:
            self.publisher.publish(result.step, validate(state, self.sources))

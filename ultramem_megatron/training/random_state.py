"""Dropout that a resumed run repeats: what a step draws is a function of (seed, step, place), not of the steps before.

So no random state need be kept in checkpoints. It does depend on the layout: another place, other numbers.
"""

import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.model.stream_key import stream_key
from ultramem_megatron.parallel.groups import Groups


def seed_step(config: RunConfig, groups: Groups, step: int) -> None:
    """Set the random state of this rank for optimizer step ``step``; does nothing in a run without dropout.

    Pipeline stages and data-parallel ranks get numbers of their own. Tensor-parallel ranks get the same ones from
    torch's generator, because they drop from the same hidden states, and each its own inside megatron-core's tracker
    (``get_cuda_rng_tracker().fork()``), where they work on their own heads or tokens.
    """
    if config.model.dropout == 0 and config.memory.dropout == 0:
        return
    key = stream_key(config.training.seed, f"step {step}/stage {groups.pipeline_rank}/data rank {groups.data_rank}")
    torch.manual_seed(key)
    model_parallel_cuda_manual_seed(key)  # torch's generator on the device again, and the tracker, by tensor rank

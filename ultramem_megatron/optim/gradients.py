"""Which group sums which gradients after the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from torch import nn

from ultramem_megatron.memory.layer import MemoryLayer


def make_finalizer(*, sequence_parallel: bool, tp: dist.ProcessGroup) -> Callable[..., None]:
    """megatron-core's finalisation, and what it leaves out without sequence parallelism.

    Each tensor-parallel rank looks up its own tokens, so the gradients of dense memory parameters are partial sums
    over ``tp``. Under sequence parallelism megatron-core adds them, as it does for norms; else it is done here.
    """

    def finalize(chunks: list[DistributedDataParallel], num_tokens: torch.Tensor | None = None, **groups: Any) -> None:
        finalize_model_grads(chunks, num_tokens, **groups)
        if tp.size() > 1 and not sequence_parallel:
            for chunk in chunks:
                _sum_memory_gradients(chunk, tp)

    return finalize


def _sum_memory_gradients(chunk: nn.Module, tp: dist.ProcessGroup) -> None:
    gradients = [
        parameter.main_grad  # type: ignore[attr-defined]
        for module in chunk.modules()
        if isinstance(module, MemoryLayer)
        for parameter in module.parameters()
        if getattr(parameter, "sequence_parallel", False)
    ]
    if not gradients:
        return
    summed = torch.cat([gradient.flatten() for gradient in gradients])  # one message, not seven
    dist.all_reduce(summed, group=tp)
    for gradient, part in zip(gradients, summed.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))

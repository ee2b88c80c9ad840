"""An optimizer step that looks at the gradient norm before it touches a weight."""

from collections.abc import Callable

from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32


def step_if(optimizer: ChainedOptimizer, accept: Callable[[float], bool]) -> float:
    """As ``optimizer.step()``, but without an update when ``accept`` says no. Collective over the world.

    Args:
        optimizer: Whose gradients are reduced.
        accept: Given the gradient norm; the answer must be the same on every rank.

    Returns:
        The norm of all gradients together, before clipping.
    """
    found_inf = optimizer.prepare_grads()
    assert not found_inf, "only loss scaling looks for it, and there is none"
    norm = float(optimizer.get_grad_norm() or 0.0)
    if accept(norm):
        for part in optimizer.chained_optimizers:
            parameters = part.get_parameters()
            if parameters and part.config.clip_grad > 0:
                clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=norm)
        optimizer.step_with_ready_grads()
    return norm

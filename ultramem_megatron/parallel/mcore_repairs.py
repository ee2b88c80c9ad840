"""Mends faults of megatron-core 0.16.1 that concern every device where neither Transformer Engine nor apex is there."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ultramem_megatron.parallel.patching import Entry, Undo, apply_entries, put


def install() -> None:
    """Mend them; twice is once. Costs the import of megatron-core."""
    apply_entries(REPAIRS)


def _bind_router_gemm() -> list[Undo]:
    from megatron.core.transformer.moe import moe_utils

    return [] if hasattr(moe_utils, "te_general_gemm") else [put(moe_utils, "te_general_gemm", None)]


def _separate_adam_steps() -> list[Undo]:
    from megatron.core.optimizer import distrib_optimizer

    if distrib_optimizer.HAVE_APEX_OR_TE:
        return []
    optimizer_class = distrib_optimizer.DistributedOptimizer
    load_before = optimizer_class.load_state_dict
    set_before = optimizer_class._set_main_param_and_optimizer_states

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        load_before(self, state_dict)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].clone()

    def set_states(self: Any, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        kept = {"step": state["step"]} if "step" in state else {}
        set_before(self, model_param, kept | tensors)

    return [
        put(optimizer_class, "load_state_dict", load_state_dict),
        put(optimizer_class, "_set_main_param_and_optimizer_states", set_states),
    ]


def _scale_gradients_in_place() -> list[Undo]:
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads

    if clip_grads.multi_tensor_scale_impl is not utils.local_multi_tensor_scale:
        return []

    def scale(chunk_size: int, overflow: torch.Tensor, lists: list[list[torch.Tensor]], factor: float) -> None:
        for source, target in zip(*lists, strict=True):
            torch.mul(source, factor, out=target)

    return [put(clip_grads, "multi_tensor_scale_impl", scale)]


_PADS_WITH_ZEROS = "padded with zeros"
"""What only a megatron-core says that has the fault: shifting the places of another would bring it in."""


def _count_places_without_padding() -> list[Undo]:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    describe_before = DistributedOptimizer.sharded_param_state_fully_reshardable
    if _PADS_WITH_ZEROS not in inspect.getsource(describe_before):
        return []

    def describe(self: Any, *arguments: Any, **named: Any) -> Any:
        with _places_without_padding(self.buffers):
            return describe_before(self, *arguments, **named)

    return [put(DistributedOptimizer, "sharded_param_state_fully_reshardable", describe)]


@contextmanager
def _places_without_padding(buffers: Iterable[Any]) -> Iterator[None]:
    """Inside, each parameter's place in its buffer is counted as if no bucket had padding at its end."""
    padded = [(buffer, buffer.param_index_map) for buffer in buffers]
    for buffer, places in padded:
        buffer.param_index_map = _without_padding(buffer, places)
    try:
        yield
    finally:
        for buffer, places in padded:
            buffer.param_index_map = places


def _without_padding(buffer: Any, places: dict[Any, tuple[int, int, int]]) -> dict[Any, tuple[int, int, int]]:
    """The same parameters in the same order, which is that of what is described."""
    padding, elements = [], 0
    for bucket in buffer.buckets:
        padding.append(bucket.offset - elements)
        elements += bucket.numel_unpadded
    return {
        parameter: (first - padding[bucket], last - padding[bucket], bucket)
        for parameter, (first, last, bucket) in places.items()
    }


REPAIRS: tuple[Entry, ...] = (
    Entry(
        name="router gemm",
        why="transformer/moe/moe_utils.py RouterGatingLinearFunction asks `te_general_gemm is not None`, a name that"
        " only the import of Transformer Engine binds: NameError in every MoE router without it",
        instead="None, which takes the branch of plain torch",
        apply=_bind_router_gemm,
    ),
    Entry(
        name="Adam step",
        why="with torch's AdamW, optimizer/distrib_optimizer.py DistributedOptimizer.load_state_dict gives all"
        " parameters ONE step tensor, which AdamW then increments once for each of them: after a resume the bias"
        " correction is wrong and the loss drifts. And _set_main_param_and_optimizer_states asks a fully_reshardable"
        " state for the step, which is not saved in it: KeyError",
        instead="a step of its own for each parameter; a state without one keeps the step just restored",
        apply=_separate_adam_steps,
    ),
    Entry(
        name="gradient scale",
        why="optimizer/clip_grads.py clips with utils.py local_multi_tensor_scale, which computes scaled gradients in"
        " a tensor of their own and copies them over: for a value table as much memory again as its gradient",
        instead="a multiplication in place",
        apply=_scale_gradients_in_place,
    ),
    Entry(
        name="places of buckets",
        why="optimizer/distrib_optimizer.py sharded_param_state_fully_reshardable takes each parameter's state from the"
        " buckets' joined states, which have no padding, at its place in the buffer, where every bucket is padded: all"
        " behind the first bucket is shifted, and zeros fill the end. Tied embeddings on pipeline stages have a bucket"
        " of their own, overlapped reduction has many",
        instead="places without padding while it describes; a version that no longer fills with zeros is left alone",
        apply=_count_places_without_padding,
    ),
)

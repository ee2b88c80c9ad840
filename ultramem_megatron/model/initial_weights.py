"""Layout-free start: every weight is a function of (seed, parameter name, global index), whatever the layout.

Names and global indices are those of the checkpoint: ``sharded_state_dict`` says which part of which logical tensor a
rank holds, for tensor, pipeline and memory parallelism alike.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor, nn

from ultramem_megatron.config.model import ModelConfig
from ultramem_megatron.memory.initial_rules import InitialRule, constant, normal
from ultramem_megatron.memory.layer import MemoryLayer
from ultramem_megatron.model.counter_random import normal_at, uniform_at
from ultramem_megatron.model.stream_key import stream_key

BLOCK_ELEMENTS = 1 << 22  # drawn at a time: bounds the fp64 and int64 temporaries to some 100 MiB


class ShardDraws:
    """Draws for one shard (``memory.initial_rules.Draws``)."""

    def __init__(self, seed: int, tensor: ShardedTensor, rows: slice, device: torch.device) -> None:
        """``rows``: the part of the shard's first dimension to draw."""
        self.key = stream_key(seed, tensor.key)
        local = tensor.local_shape or (1,)
        self.shape = (len(range(*rows.indices(local[0]))), *local[1:])
        self.index = _global_index(tensor, rows, device)

    def normal(self) -> Tensor:
        return normal_at(self.key, self.index).float()

    def uniform(self) -> Tensor:
        return uniform_at(self.key, self.index).float()


@torch.no_grad()
def set_initial_weights(chunk: nn.Module, sharded_state: dict[str, Any], model: ModelConfig, seed: int) -> None:
    """Fill every parameter of a model chunk.

    Args:
        chunk: The module, not yet wrapped by DDP.
        sharded_state: Its ``sharded_state_dict()``, whose tensors are the parameters themselves.
        model: For the standard deviations of the dense part.
        seed: ``training.seed``.
    """
    rules = {id(p): rule for p, rule in _rules(chunk, model)}
    for entry in sharded_state.values():
        data = getattr(entry, "data", None)
        if not isinstance(data, Tensor) or id(data) not in rules:
            continue  # buffers, and megatron-core's empty extra state
        rule = rules.pop(id(data))
        for tensor in _pieces(entry):
            _fill(tensor, rule, seed)
    assert not rules, "a parameter is missing from the sharded state"


def _rules(chunk: nn.Module, model: ModelConfig) -> Iterator[tuple[nn.Parameter, InitialRule]]:
    """Every parameter with its rule: memory layers bring their own, the rest starts as GPT does in Megatron."""
    for module in chunk.modules():
        if isinstance(module, MemoryLayer):
            yield from ((p, module.rules[name]) for name, p in module.named_parameters())
    residual_std = model.init_std / math.sqrt(2 * model.layers)
    for name, parameter in chunk.named_parameters():
        if name.startswith("memory."):
            continue
        if parameter.dim() == 1:
            yield parameter, constant(1.0)
        elif name.startswith("embedding.") or (model.tie_embeddings and name.startswith("output_layer.")):
            # tied, the last pipeline stage holds a copy of the embedding under the output layer's name
            yield parameter, normal(model.embedding_init_std)
        elif name.endswith(("linear_proj.weight", "linear_fc2.weight")):
            yield parameter, normal(residual_std)
        else:
            yield parameter, normal(model.init_std)


def _pieces(entry: ShardedTensor | ShardedTensorFactory) -> list[ShardedTensor]:
    """The sharded tensors of an entry; a gated MLP's first matrix is two, views of one parameter."""
    if isinstance(entry, ShardedTensor):
        return [entry]
    built = entry.build()
    return list(built.values()) if isinstance(built, dict) else list(built)


def _fill(tensor: ShardedTensor, rule: InitialRule, seed: int) -> None:
    data = tensor.data
    rows = data.shape[0]
    # a rule may look at a whole small tensor (unit_core); only plain draws of large ones are cut into blocks
    step = max(1, rows if data.numel() <= BLOCK_ELEMENTS else BLOCK_ELEMENTS * rows // data.numel())
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        data[part].copy_(rule(ShardDraws(seed, tensor, part, data.device)))


def _global_index(tensor: ShardedTensor, rows: slice, device: torch.device) -> Tensor:
    """Row-major index in the global tensor of each element of the shard's ``rows``, int64."""
    ahead = tensor.prepend_axis_num
    offsets, sizes = tensor.global_offset, tensor.global_shape
    index = torch.zeros((), dtype=torch.int64, device=device)
    for axis, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        if axis < ahead:
            index = index * size + offset
            continue
        local = tensor.local_shape[axis - ahead]
        places = torch.arange(offset, offset + local, device=device)
        if axis == ahead:
            places = places[rows]
        index = index.unsqueeze(-1) * size + places
    return index

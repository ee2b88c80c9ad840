"""The sharded state of a run: weights and optimizer in the coordinates of the logical tensors, and their digests."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from ultramem_megatron.checkpoint.digest import Piece, join_pieces
from ultramem_megatron.checkpoint.manifest import TensorDigest
from ultramem_megatron.checkpoint.tensor_digest import digest_piece

# the format that describes optimizer state like the parameters, so that any layout loads what any other saved
METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
}


def sharded_state(ddp: list[DistributedDataParallel], optimizer: ChainedOptimizer, *, loading: bool) -> dict[str, Any]:
    """What dist_checkpointing saves or fills. Collective over the world."""
    parts = optimizer.chained_optimizers
    if loading:
        for part in parts:
            # a fresh torch optimizer has no moments yet, and megatron-core asserts that it has
            part._init_optimizer_states_with_dummy_values()
    _give_step_to_empty_parts(parts)
    model = {f"chunk_{index}": chunk.module.sharded_state_dict(metadata=METADATA) for index, chunk in enumerate(ddp)}
    with _quick_collections():
        state = optimizer.sharded_state_dict(model, is_loading=loading, metadata=METADATA)
    if not loading and len(parts) > 1:
        for part in state.values():
            if not part["param_state"]:  # the same stage again: nothing of its own to add to what all ranks save
                del part["param_state"]
    return {"model": model, "optimizer": state}


def weights_state(chunks: Sequence[GPTModel]) -> dict[str, Any]:
    """The weights alone, for evaluation and generation."""
    return {"model": {f"chunk_{i}": chunk.sharded_state_dict(metadata=METADATA) for i, chunk in enumerate(chunks)}}


def logical_digests(state: dict[str, Any]) -> dict[str, TensorDigest]:
    """The digest of every logical tensor of a sharded state. Collective over the world.

    Args:
        state: What dist_checkpointing would save. Its factories are applied in place, as saving would.
    """
    apply_factories(state)
    own = [
        digest_piece(tensor.key, tensor.data, tensor.global_offset, tensor.global_shape)
        for tensor in nested_values(state)
        if isinstance(tensor, ShardedTensor) and is_main_replica(tensor.replica_id)
    ]
    gathered: list[list[Piece]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, own)
    return join_pieces(piece for pieces in gathered for piece in pieces)


@contextmanager
def _quick_collections() -> Iterator[None]:
    """megatron-core collects garbage after each optimizer it describes: spare it the search of all that was there.

    A quarter of a second each, in a process that has imported what it needs; training waits for it.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _give_step_to_empty_parts(parts: Sequence[DistributedOptimizer]) -> None:
    """Let a rank whose stage has no table save and load the tables' optimizer.

    With torch's AdamW megatron-core reads the step from the state of a parameter, and asserts that there is one. All
    parts step together, so the step of another serves; torch hands a state that belongs to no parameter through.
    """
    steps = [state["step"] for part in parts for state in part.optimizer.state.values() if "step" in state]
    for part in parts:
        if not part.optimizer.state and steps:
            part.optimizer.state["no parameter"] = {"step": steps[0].clone()}

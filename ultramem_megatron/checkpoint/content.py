"""The sharded state of a run: weights and optimizer in the coordinates of the logical tensors."""

from collections.abc import Sequence
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import MegatronOptimizer

# the format that describes optimizer state like the parameters, so that any layout loads what any other saved
METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
}


def sharded_state(ddp: list[DistributedDataParallel], optimizer: MegatronOptimizer, *, loading: bool) -> dict[str, Any]:
    """What dist_checkpointing saves or fills. Collective over the world."""
    if loading:
        for part in getattr(optimizer, "chained_optimizers", [optimizer]):
            # a fresh torch optimizer has no moments yet, and megatron-core asserts that it has
            part._init_optimizer_states_with_dummy_values()
    model = {f"chunk_{index}": chunk.module.sharded_state_dict(metadata=METADATA) for index, chunk in enumerate(ddp)}
    return {"model": model, "optimizer": optimizer.sharded_state_dict(model, is_loading=loading, metadata=METADATA)}


def weights_state(chunks: Sequence[GPTModel]) -> dict[str, Any]:
    """The weights alone, for evaluation and generation."""
    return {"model": {f"chunk_{i}": chunk.sharded_state_dict(metadata=METADATA) for i, chunk in enumerate(chunks)}}

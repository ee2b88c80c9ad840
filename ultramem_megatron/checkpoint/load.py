"""Read a checkpoint into a run of any layout."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import ChainedOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from ultramem_megatron.checkpoint.content import logical_digests, sharded_state, weights_state
from ultramem_megatron.checkpoint.describe import OPTIMIZER
from ultramem_megatron.checkpoint.integrity import changed_files, compare_digests, describe_damage
from ultramem_megatron.checkpoint.loadable import COMMON, check_loadable
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.safe_load import PlainCommon, plain_reader, without_objects
from ultramem_megatron.checkpoint.stored import TABLE_SUFFIX
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.optim.stored import load_state, rounded_moments
from ultramem_megatron.parallel.agree import on_first_rank


def check_files(folder: Path, manifest: Manifest) -> None:
    """Look at a checkpoint before any of it is loaded: whether it holds what one of ours holds, and nothing that would
    run; and read every file once, each rank its share. Collective over the world.

    Raises:
        CheckpointError: On all ranks; names the files that have changed, or that hold something else.
    """
    on_first_rank(partial(check_loadable, folder, manifest))
    largest_first = sorted(manifest.sha256, key=lambda name: manifest.files[name], reverse=True)
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, changed_files(folder, manifest, largest_first[dist.get_rank() :: len(gathered)]))
    changed = sorted(name for names in gathered for name in names)
    if changed:
        raise CheckpointError(describe_damage(folder, [f"{name} has changed since it was written" for name in changed]))


def _load(folder: Path, state: dict[str, Any], replicas: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """As megatron-core does it, but that nothing is unpickled (``safe_load.py``).

    Args:
        folder: The checkpoint, which was looked at.
        state: What to fill.
        replicas: What several ranks of this group need, one of them reads and sends on. None: each reads all it needs.

    Raises:
        CheckpointError: On all ranks, when one cannot read a file or make sense of it; names rank and reason.
    """
    strategy: Any = TorchDistLoadShardedStrategy()
    if replicas is not None:
        strategy = FullyParallelLoadStrategyWrapper(strategy, replicas)
    try:
        with plain_reader():
            filled = dist_checkpointing.load(without_objects(state), str(folder), strategy, PlainCommon(state))
    except CheckpointError as error:  # of common.pt, which is the same on all ranks
        raise CheckpointError(describe_damage(folder, [str(error)])) from None
    except CheckpointException as error:
        reasons = [f"rank {rank} cannot read its part ({failure!r})" for rank, (failure, _) in error.failures.items()]
        raise CheckpointError(describe_damage(folder, reasons)) from None
    return dict(filled)


def load_checkpoint(
    folder: Path,
    manifest: Manifest,
    ddp: list[DistributedDataParallel],
    optimizer: ChainedOptimizer,
    replicas: dist.ProcessGroup,
) -> None:
    """Fill weights and optimizer. Collective over the world; the layout may differ from the one that saved.

    Args:
        folder: The checkpoint.
        manifest: Of it.
        ddp: This rank's wrapped model chunks.
        optimizer: Whose master weights and moments come along.
        replicas: Ranks that need much the same: the data-parallel ones. One of them reads, and sends on.

    Raises:
        CheckpointError: What the run holds then is not what was saved; names the tensors. Its state is of no use.
    """
    loaded = _load(folder, sharded_state(ddp, optimizer, loading=True), replicas)
    for index, chunk in enumerate(ddp):
        chunk.module.load_state_dict(loaded["model"][f"chunk_{index}"])
    weights = logical_digests(weights_state([chunk.module for chunk in ddp]))
    compare_digests(folder, manifest, weights)  # now: the optimizer writes its own copy of the parameters over them
    _fill_optimizer(folder, optimizer, loaded)
    del loaded
    rounded = rounded_moments(optimizer, manifest.config.get("optimizer", {}))
    unlike = tuple(f"{OPTIMIZER}state.{moment}." for moment in rounded)
    state = {
        name: digest
        for name, digest in logical_digests(sharded_state(ddp, optimizer, loading=False)).items()
        if not (name.startswith(unlike) and name.endswith(TABLE_SUFFIX))
    }
    compare_digests(folder, manifest, {name: digest for name, digest in state.items() if name not in weights})
    compare_digests(folder, manifest, state)  # the weights again, as the optimizer has them now


def _fill_optimizer(folder: Path, optimizer: ChainedOptimizer, loaded: dict[str, Any]) -> None:
    try:
        load_state(optimizer, loaded["optimizer"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        # its tensors were asked for by this run; what else there is, a file says, which is the same on all ranks
        reason = f"{COMMON} does not hold the settings of this run's optimizer ({error!r})"
        raise CheckpointError(describe_damage(folder, [reason])) from error


def load_weights(folder: Path, manifest: Manifest, chunks: Sequence[GPTModel]) -> None:
    """Fill the weights alone. Collective over the world.

    Raises:
        CheckpointError: They are not what was saved; names the tensors.
    """
    loaded = _load(folder, weights_state(chunks))
    for index, chunk in enumerate(chunks):
        chunk.load_state_dict(loaded["model"][f"chunk_{index}"])
    compare_digests(folder, manifest, logical_digests(weights_state(chunks)))

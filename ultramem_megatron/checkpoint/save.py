"""Write a checkpoint: every rank its shards, one rank the manifest, nothing visible before all is on disk."""

import contextlib
import queue
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer

from ultramem_megatron.checkpoint import store
from ultramem_megatron.checkpoint.content import logical_digests, sharded_state
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.files import sha256_of


def save_checkpoint(
    root: Path, ddp: list[DistributedDataParallel], optimizer: ChainedOptimizer, manifest: Manifest, keep: int
) -> Path:
    """Save under ``root`` and make it the newest. Collective over the world.

    Args:
        root: The folder of checkpoints, seen by all ranks.
        ddp: This rank's wrapped model chunks.
        optimizer: Whose master weights and moments go along.
        manifest: ``files``, ``sha256`` and ``digests`` are filled in here.
        keep: Newest checkpoints kept.

    Returns:
        The checkpoint's folder.
    """
    first = dist.get_rank() == 0
    if first:
        store.begin(root, manifest.step)
    dist.barrier()
    folder = store.unfinished_folder(root, manifest.step)
    _bring_results_home_without_a_server()
    content = sharded_state(ddp, optimizer, loading=False)
    digests = logical_digests(content)
    dist_checkpointing.save(content, str(folder))
    written: list[dict[str, tuple[int, str]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(written, _own_shards(folder))
    if first:
        shards = {name: facts for own in written for name, facts in own.items()}
        store.wait_until_visible(folder, {name: size for name, (size, _) in shards.items()})
        sha256 = {name: digest for name, (_, digest) in shards.items()}
        store.finish(root, folder, manifest.model_copy(update={"digests": digests, "sha256": sha256}), keep)
    dist.barrier()
    return store.step_folder(root, manifest.step)


def _own_shards(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each file of this rank (dist_checkpointing names them ``__<rank>_<n>.distcp``)."""
    paths = folder.glob(f"__{dist.get_rank()}_*")
    return {path.name: (path.stat().st_size, sha256_of(path)) for path in paths}


def _bring_results_home_without_a_server() -> None:
    """Spare megatron-core a process that it starts for the results of its writers.

    It is made for saves in the background. It imports torch (seconds, and 270 MB in each rank), and lives on for ever
    when its rank is killed. Here the results come from the process that waits for them.
    """
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.Queue()


def package_versions() -> dict[str, str]:
    """Versions of what wrote the checkpoint."""
    return dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    for name in ("ultramem-megatron", "torch", "megatron-core", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from a source folder without install
            yield name, metadata.version(name)

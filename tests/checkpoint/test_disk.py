"""A full disk is told from other failures, however deep it lies; and the checkpoint before it stays."""

import errno
import os
import resource
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ultramem_megatron.checkpoint.disk import full_disk_named, names_full_disk, root_of
from ultramem_megatron.checkpoint.store import checkpoint_folders
from ultramem_megatron.errors import CheckpointError, OutOfDiskError
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import tiny_config


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES])
def test_a_full_disk_is_told_by_the_words_of_the_system(number: int) -> None:
    error = OSError(number, os.strerror(number), "__1_0.distcp")
    assert names_full_disk(f"rank 1: OSError: {error}") is (number not in (errno.EIO, errno.EACCES))


def test_a_full_disk_is_found_behind_what_came_of_it() -> None:
    full, consequence = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("unexpected pos 704 vs 598")
    consequence.__context__ = full
    assert root_of(consequence) is full
    other = ValueError("another")
    other.__cause__ = KeyError("cause")
    assert root_of(other) is other


def test_metrics_that_find_no_room_end_the_run_as_a_checkpoint_would(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    words = r"no room for what the run writes in .*run: .*No space.*: make room"
    with pytest.raises(OutOfDiskError, match=words), full_disk_named(tmp_path / "run"):
        raise RuntimeError("the writer of events is closed") from full
    for other in (OSError(errno.EIO, os.strerror(errno.EIO)), CheckpointError(str(full)), KeyError("x")):
        with pytest.raises(type(other)), full_disk_named(tmp_path):
            raise other


def train(run_dir: Path) -> None:
    """``pretrain`` on this rank; from step 3 on rank 1 cannot write files of the size of its shard."""
    from ultramem_megatron.training import loop
    from ultramem_megatron.training.pretrain import pretrain

    step = loop.train_step

    def step_then_fill(state: Any, micro_batches: Any) -> Any:
        if state.step == 2 and state.groups.data_rank == 1:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        return step(state, micro_batches)

    loop.train_step = step_then_fill  # a fork: no other test sees it
    config = tiny_config("checkpoint.async_save=false")  # or the limit would meet the save of step 2
    pretrain(config, choose_plan(config, local_cluster(2)), run_dir, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")
def test_the_old_checkpoint_is_kept(megatron: ModuleType, tmp_path: Path) -> None:
    for module in ("ultramem_megatron.training.pretrain", "torch.utils.tensorboard"):
        import_module(module)  # once, before the forks
    with pytest.raises(OutOfDiskError, match=r"no checkpoint of step 6 in .*: rank 1: .*; earlier ones .*: make room"):
        run_distributed(2, train, tmp_path / "run")
    root = tmp_path / "run" / "checkpoints"
    assert [folder.name for folder in checkpoint_folders(root)] == ["step_00000002"]
    assert (root / "latest").read_text() == "step_00000002\n"
    assert not list(root.glob(".unfinished-step*"))

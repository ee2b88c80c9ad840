"""A full disk is told from other failures, however deep it lies; and the checkpoint before it stays."""

import errno
import resource
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ultramem_megatron.checkpoint.disk import is_out_of_disk
from ultramem_megatron.checkpoint.store import checkpoint_folders
from ultramem_megatron.errors import OutOfDiskError
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import tiny_config


def caused_by(cause: Exception) -> Exception:
    try:
        raise RuntimeError("the save failed") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EDQUOT, "quota"), True),
        (caused_by(OSError(errno.EFBIG, "limit")), True),
        (caused_by(RuntimeError("Worker failure: [Errno 28] No space left on device")), True),
        (OSError(errno.EIO, "No answer"), False),
        (caused_by(ValueError("28")), False),
    ],
)
def test_a_full_disk_is_told(error: Exception, expected: bool) -> None:
    assert is_out_of_disk(error) is expected


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
    pretrain(tiny_config(), choose_plan(tiny_config(), local_cluster(2)), run_dir, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")
def test_the_old_checkpoint_is_kept(megatron: ModuleType, tmp_path: Path) -> None:
    for module in ("ultramem_megatron.training.pretrain", "torch.utils.tensorboard"):
        import_module(module)  # once, before the forks
    with pytest.raises(OutOfDiskError, match=r"no room in .* for the checkpoint of step 4; step_00000002 is kept"):
        run_distributed(2, train, tmp_path / "run")
    root = tmp_path / "run" / "checkpoints"
    assert [folder.name for folder in checkpoint_folders(root)] == ["step_00000002"]
    assert (root / "latest").read_text() == "step_00000002\n"
    assert not list(root.glob(".unfinished-step*"))

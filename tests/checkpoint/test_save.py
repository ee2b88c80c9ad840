"""Checkpoints written beside training: the same content, one at a time, and a failed one harms no other."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.checkpoint.manifest import Manifest, read_manifest
from ultramem_megatron.checkpoint.store import checkpoint_folders, unfinished_folders
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.synthetic import SyntheticTokens
from ultramem_megatron.errors import CheckpointError, OutOfDiskError
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA"),
]

SPLIT = ("memory.partition=number_wise", "memory.parallel_size=2", "checkpoint.interval=2", "checkpoint.keep=9")
WAIT_SECONDS = 60.0

DATA = SyntheticTokens(seq_length=32, vocab_size=256, seed=1)


@dataclass
class Writer:
    """Stands in for ``ShardFiles.write``: waits until it is let go, and fails on rank 1 as often as it is told to."""

    write: Any
    let_go: threading.Event = field(default_factory=threading.Event)
    failures: int = 0

    def __call__(self, files: Any) -> Any:
        assert self.let_go.wait(WAIT_SECONDS)
        if dist.get_rank() == 1 and self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device", "__1_0.distcp")
        return self.write(files)


class Run:
    """A tiny run on this rank, stepped by hand."""

    def __init__(self, config: RunConfig, root: Path) -> None:
        from ultramem_megatron.checkpoint.shard_files import ShardFiles
        from ultramem_megatron.data.dataset import open_training_data
        from ultramem_megatron.planning.choose import choose_plan
        from ultramem_megatron.planning.cluster import local_cluster
        from ultramem_megatron.training.checkpointing import SaveCheckpoints
        from ultramem_megatron.training.setup import build_run_groups, build_train_state

        self.writer = Writer(ShardFiles.write)
        ShardFiles.write = lambda files: self.writer(files)  # type: ignore[method-assign]  # this process is a fork
        plan = choose_plan(config, local_cluster(dist.get_world_size()))
        groups = build_run_groups(config, plan, torch.device("cpu"))
        self.state = build_train_state(config, plan, groups)
        self.batches: Iterator[Any] = self.state.batches(open_training_data(config))
        self.published: dict[int, dict[str, float]] = {}
        self.root = root
        self.saves = SaveCheckpoints(root, DATA.identity, self.state, self)  # type: ignore[arg-type]

    def publish(self, step: int, values: Mapping[str, float]) -> None:
        self.published.setdefault(step, {}).update(values)

    def step(self) -> None:
        from ultramem_megatron.training.step import train_step

        self.saves.after_step(self.state, train_step(self.state, next(self.batches)))

    @property
    def saved(self) -> list[int]:
        """Steps of the checkpoints that are there, as all ranks see them at one moment."""
        dist.barrier()
        found = sorted(read_manifest(folder).step for folder in checkpoint_folders(self.root))
        dist.barrier()
        return found


def save_at_2_and_3(config: RunConfig, root: Path) -> dict[int, dict[str, float]]:
    run = Run(config, root)
    run.writer.let_go.set()
    for _ in range(3):
        run.step()
    run.saves.on_exit(run.state)
    assert run.saved == [2, 3]
    return run.published


def change_weights_before_they_are_written(config: RunConfig, root: Path) -> dict[int, dict[str, float]]:
    run = Run(config, root)
    for _ in range(3):
        run.step()
    assert run.saved == []
    assert len(unfinished_folders(root)) == 1
    run.writer.let_go.set()
    run.saves.on_exit(run.state)
    assert run.saved == [2, 3]
    assert unfinished_folders(root) == []
    return run.published


def manifests(root: Path) -> list[Manifest]:
    return [read_manifest(root / f"step_{step:08d}") for step in (2, 3)]


def test_what_was_there_at_the_step_is_written_though_training_went_on(megatron: ModuleType, tmp_path: Path) -> None:
    waiting = tiny_config(*SPLIT, "checkpoint.async_save=false")
    before = run_distributed(2, save_at_2_and_3, waiting, tmp_path / "waiting")[0]
    beside = run_distributed(2, change_weights_before_they_are_written, tiny_config(*SPLIT), tmp_path / "beside")[0]
    for ours, theirs in zip(manifests(tmp_path / "beside"), manifests(tmp_path / "waiting"), strict=True):
        assert ours.digests == theirs.digests
        assert set(ours.files) == set(theirs.files)
    first, second = manifests(tmp_path / "beside")
    changed = [name for name in first.digests if first.digests[name] != second.digests[name]]
    assert any("table" in name for name in changed), "else step 3 would have been no change to notice"
    assert all(seconds > 0 for times in (*before.values(), *beside.values()) for seconds in times.values())
    assert {name for times in beside.values() for name in times} == {
        *("checkpoint/stall_seconds", "checkpoint/write_seconds"),
    }
    assert sorted(before) == [2, 3]


def fail_now_and_then(config: RunConfig, root: Path) -> str:
    run = Run(config, root)
    run.writer.let_go.set()
    run.writer.failures = 1
    for _ in range(4):  # the save of step 2 fails, that of step 4 is waited for by that of step 6
        run.step()
    run.step()
    run.writer.failures = 2
    run.step()
    assert run.saved == [4]
    run.step()
    with pytest.raises(OutOfDiskError) as caught:
        run.step()  # 8 waits for 6, which fails, and then fails itself
        run.saves.on_exit(run.state)
    assert run.saved == [4]
    assert unfinished_folders(root) == []
    return str(caught.value)


def test_a_failed_save_leaves_the_others_and_two_in_a_row_end_the_run(megatron: ModuleType, tmp_path: Path) -> None:
    config = tiny_config(*SPLIT, "training.steps=20")
    messages = run_distributed(2, fail_now_and_then, config, tmp_path)
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"no checkpoint of step 8 in {tmp_path}: rank 1: OSError: [Errno 28] No space left")


def fail_at_the_end(config: RunConfig, root: Path) -> None:
    run = Run(config, root)
    run.writer.let_go.set()
    run.step()
    run.writer.failures = 1
    with pytest.raises(OutOfDiskError, match=r"no checkpoint of step 1 in .*; earlier ones are as they were"):
        run.saves.on_exit(run.state)
    assert run.saved == []


def test_a_run_does_not_end_well_without_its_last_checkpoint(megatron: ModuleType, tmp_path: Path) -> None:
    run_distributed(2, fail_at_the_end, tiny_config(*SPLIT, "checkpoint.async_save=false"), tmp_path)


def fail_to_write_what_is_no_tensor(config: RunConfig, root: Path) -> str:
    from ultramem_megatron.checkpoint import store

    begin = store.begin

    def begin_with_something_in_the_way(root: Path, step: int) -> Path:
        folder = begin(root, step)
        (folder / "common.pt").mkdir()
        return folder

    store.begin = begin_with_something_in_the_way  # this process is a fork
    run = Run(config, root)
    run.writer.let_go.set()
    run.step()
    with pytest.raises(CheckpointError) as caught:
        run.saves.on_exit(run.state)
    assert run.saved == []
    assert unfinished_folders(root) == []
    return str(caught.value)


def test_what_rank_0_alone_cannot_write_fails_on_all_ranks(megatron: ModuleType, tmp_path: Path) -> None:
    messages = run_distributed(2, fail_to_write_what_is_no_tensor, tiny_config(*SPLIT), tmp_path, timeout_seconds=60)
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"no checkpoint of step 1 in {tmp_path}: rank 0: IsADirectoryError: ")

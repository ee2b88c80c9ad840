"""A flipped byte in a table's shard: named when a run starts, and the checkpoint before it is used."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.files import sha256_of, write_json
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.layouts import Layout, train_layout
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA"),
]

NUMBER_WISE = Layout("2, number-wise", 2, ("memory.partition=number_wise", "memory.parallel_size=2"))
DIMENSION_WISE = Layout("2, dimension-wise", 2, ("memory.partition=dimension_wise", "memory.parallel_size=2"))
TABLES = [
    "memory.layers.0.table.weight",
    "optimizer.state.param.memory.layers.0.table.weight",
    "optimizer.state.exp_avg_sq.memory.layers.0.table.weight",
]


def stop_after(step: int) -> RunConfig:
    return tiny_config(f"training.stop_after={step}", "checkpoint.interval=1")


@pytest.fixture(scope="module")
def saved(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2, written by two ranks with the table split by rows."""
    root = tmp_path_factory.mktemp("saved") / "checkpoints"
    train_layout(stop_after(2), NUMBER_WISE, save=root)
    return root


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


@pytest.fixture
def warnings(tmp_path: Path) -> Iterator[Path]:
    """The file that takes what the ranks, which are forks, log."""
    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger().addHandler(handler)
    yield tmp_path / "log"
    logging.getLogger().removeHandler(handler)


def flip_byte(folder: Path, table: str, part: float = 0.5) -> str:
    """In the middle of the table's last shard, or another part of it; returns the file's name."""
    from torch.distributed.checkpoint import FileSystemReader

    metadata = FileSystemReader(folder).read_metadata()
    stored = [info for index, info in metadata.storage_data.items() if index.fqn == table][-1]
    file = folder / stored.relative_path
    content = bytearray(file.read_bytes())
    content[stored.offset + int(part * stored.length)] ^= 4
    file.write_bytes(content)
    return str(stored.relative_path)


def steps_taken_to(step: int, layout: Layout, root: Path) -> int:
    return len(train_layout(stop_after(step), layout, load=root).losses)


@pytest.mark.parametrize("table", TABLES[:2])
def test_a_changed_file_is_named_and_the_previous_used(root: Path, table: str, warnings: Path) -> None:
    file = flip_byte(root / "step_00000002", table)
    assert steps_taken_to(3, NUMBER_WISE, root) == 2
    assert f"step_00000002 is damaged: {file} has changed since it was written" in warnings.read_text()


@pytest.mark.parametrize(
    ("table", "layout"), list(zip(TABLES, [DIMENSION_WISE, NUMBER_WISE, DIMENSION_WISE], strict=True))
)
def test_a_tensor_that_is_not_what_was_saved_is_named_and_the_previous_used(
    root: Path, table: str, layout: Layout, warnings: Path
) -> None:
    """Damage from before the file was hashed."""
    folder = root / "step_00000002"
    accept_hash(folder, flip_byte(folder, table))
    assert steps_taken_to(3, layout, root) == 2
    errors = warnings.read_text()
    assert f"step_00000002 is damaged: the content of {table} is not what was saved" in errors
    assert errors.count("is not what was saved") == 1


def accept_hash(folder: Path, file: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][file] = sha256_of(folder / file)
    write_json(folder / "manifest.json", manifest)


def test_a_shard_that_one_rank_cannot_make_sense_of_is_passed_over_by_all(root: Path, warnings: Path) -> None:
    folder = root / "step_00000002"
    accept_hash(folder, flip_byte(folder, TABLES[0], part=0.0))  # the first byte of the archive
    assert steps_taken_to(3, NUMBER_WISE, root) == 2
    assert "step_00000002 is damaged: rank 1 cannot read its part (" in warnings.read_text()


def test_weights_alone_come_from_the_previous_one_too(root: Path, warnings: Path) -> None:
    file = root / "step_00000002" / "common.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    assert run_distributed(1, step_of_the_weights, root.parent) == [1]
    assert "step_00000002 is damaged: common.pt " in warnings.read_text()


def step_of_the_weights(run_dir: Path) -> int:
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.setup import build_run_groups, build_train_state
    from ultramem_megatron.training.trained_model import load_newest

    config = stop_after(2)
    plan = choose_plan(config, local_cluster(1))
    state = build_train_state(config, plan, build_run_groups(config, plan, torch.device("cpu")))
    return load_newest(run_dir, state.chunks)[1].step


def test_undamaged_ones_are_used(root: Path) -> None:
    assert steps_taken_to(3, DIMENSION_WISE, root) == 1
    assert steps_taken_to(3, Layout("1 process", 1), root) == 1


def test_a_checkpoint_from_before_digests_is_still_read(root: Path) -> None:
    path = root / "step_00000002" / "manifest.json"
    manifest = json.loads(path.read_text())
    for new in ("sha256", "digests"):
        assert manifest.pop(new)
    write_json(path, {**manifest, "version": 1})
    assert steps_taken_to(3, NUMBER_WISE, root) == 1

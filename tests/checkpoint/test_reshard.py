"""The same logical content, cut for other ranks, in bounded memory."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ultramem_megatron.checkpoint.manifest import read_manifest
from ultramem_megatron.checkpoint.reshard import Cut, reshard
from ultramem_megatron.checkpoint.stored import read_stored
from ultramem_megatron.checkpoint.torch_file import write_tensor
from ultramem_megatron.checkpoint.verify import verify
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.testing.layouts import Layout, train_layout
from ultramem_megatron.testing.tiny import tiny_config

TABLE = "memory.layers.0.table.weight"
CUTS = [Cut(), Cut(row_parts=3), Cut(column_parts=2), Cut(column_parts=5), Cut(row_parts=40), Cut(3, 2)]

WriteModel = Callable[..., Path]


@pytest.mark.parametrize("block_bytes", [1, 200, 2**20])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_the_content_stays(write_model: WriteModel, tmp_path: Path, cut: Cut, block_bytes: int) -> None:
    source = write_model(row_cuts=(1, 20), column_cuts=(5,))
    result = reshard(source, tmp_path / "out", cut, block_bytes)
    assert result == tmp_path / "out" / "step_00000005"
    assert (tmp_path / "out" / "latest").read_text() == "step_00000005\n"
    assert verify(result).damage == []
    before, after = read_manifest(source), read_manifest(result)
    assert after.digests == before.digests
    assert (result / "common.pt").read_bytes() == (source / "common.pt").read_bytes()
    assert set(after.files) == {
        ".metadata",
        "common.pt",
        "metadata.json",
        *(f"__{rank}_0.distcp" for rank in range(cut.files)),
    }
    contents = []
    for folder in (source, result):
        record = read_stored(folder).objects["layer._extra_state/shard_0_1"]
        contents.append(record.file.read_bytes()[record.start : record.start + record.length])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_rank_finds_its_shard_in_its_file(write_model: WriteModel, tmp_path: Path, cut: Cut) -> None:
    table = read_stored(reshard(write_model(row_cuts=(9,)), tmp_path / "out", cut, 200)).tensors[TABLE]
    for rank, shard in enumerate(cut.rectangles(table.shape)):
        own = [chunk for chunk in table.chunks if chunk.record.file.name == f"__{rank}_0.distcp"]
        rows = [row for chunk in own for row in range(chunk.offset[0], chunk.offset[0] + chunk.sizes[0])]
        assert sorted(rows) == (list(shard.rows) if shard.columns else [])
        assert all(chunk.offset[1] == shard.columns.start for chunk in own)
        assert all(chunk.sizes[1] == len(shard.columns) for chunk in own)


def test_there_and_back(write_model: WriteModel, tmp_path: Path) -> None:
    there = reshard(write_model(row_cuts=(9,)), tmp_path / "there", Cut(column_parts=3))
    back = reshard(there, tmp_path / "back", Cut(row_parts=2), 100)
    assert verify(back).damage == []


def test_what_is_there_is_left_alone(write_model: WriteModel, tmp_path: Path) -> None:
    source = write_model()
    with pytest.raises(CheckpointError, match=r"step_00000005 exists already; name another folder with --out"):
        reshard(source, source.parent, Cut(row_parts=2))
    assert verify(source).damage == []


def test_a_damaged_one_is_refused(write_model: WriteModel, tmp_path: Path) -> None:
    source = write_model()
    file = source / "__0_0.distcp"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"step_00000005 is damaged: __0_0\.distcp has changed"):
        reshard(source, tmp_path / "out", Cut(row_parts=2))
    assert not (tmp_path / "out").exists()


def test_content_that_was_not_saved_leaves_nothing_behind(write_model: WriteModel, tmp_path: Path) -> None:
    source = write_model()
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["digests"][TABLE]["digest"] = "0" * 16
    (source / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"the content of {TABLE} is not what was saved"):
        reshard(source, tmp_path / "out", Cut(row_parts=2))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(write_model: WriteModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("none of ours")
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(
            CheckpointError, match=rf"--out {root} cannot be written \(.+\); nothing was left there: name"
        ):
            reshard(write_model(), root, Cut(row_parts=2))
        shutil.rmtree(tmp_path / "checkpoints")


@pytest.mark.parametrize("part", ["write_tensor", "shutil.copyfile", "store.finish"])
def test_a_full_disk_is_named_and_nothing_is_left(
    write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = write_model()
    monkeypatch.setattr(f"ultramem_megatron.checkpoint.reshard.{part}", full)
    with pytest.raises(CheckpointError, match=r"out cannot be written \(No space left on device\); .* has room"):
        reshard(source, tmp_path / "out", Cut(row_parts=2))
    assert list((tmp_path / "out").iterdir()) == []


def test_no_parts_are_no_cut() -> None:
    with pytest.raises(CheckpointError, match=r"--ranks 0 must be at least 1"):
        Cut(row_parts=0)


def test_torch_reads_what_is_written_without_it(tmp_path: Path) -> None:
    for dtype, bits in [("float32", np.uint32), ("bfloat16", np.uint16), ("int64", np.uint64), ("bool", np.uint8)]:
        elements = (np.arange(12) % 2).astype(bits).reshape(3, 4)
        with (tmp_path / "file").open("wb") as stream:
            stream.write(b"before")
            write_tensor(stream, elements, dtype)
        with (tmp_path / "file").open("rb") as stream:
            read = torch.load(io.BytesIO(stream.read()[len(b"before") :]), weights_only=True)
        assert read.dtype is getattr(torch, dtype)
        np.testing.assert_array_equal(read.view(dtype=getattr(torch, f"uint{8 * elements.itemsize}")).numpy(), elements)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")
def test_a_run_goes_on_from_it_as_from_the_source(megatron: ModuleType, tmp_path: Path) -> None:
    number_wise = Layout("2", 2, ("memory.partition=number_wise", "memory.parallel_size=2"))
    dimension_wise = Layout("2", 2, ("memory.partition=dimension_wise", "memory.parallel_size=2"))
    train_layout(tiny_config("training.stop_after=2"), number_wise, save=tmp_path / "source")
    reshard(tmp_path / "source" / "step_00000002", tmp_path / "out", Cut(column_parts=2), block_bytes=1000)
    config = tiny_config("training.stop_after=4")
    curve = train_layout(config, dimension_wise, load=tmp_path / "out")
    assert len(curve.losses) == 2
    assert curve == train_layout(config, dimension_wise, load=tmp_path / "source")


ROWS, COLUMNS, BLOCK_MIB = 2**20, 32, 8
MEASURE = """
import sys
from ultramem_launch.__main__ import main

sys.argv[0] = "ultramem"
try:
    main()
finally:
    assert "torch" not in sys.modules
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in /proc; getrusage inherits that of the parent")
@pytest.mark.parametrize("partition", ["number_wise", "dimension_wise"])
def test_a_million_rows_in_bounded_memory(write_large: Path, tmp_path: Path, partition: str) -> None:
    """All of the process, libraries included, from its start to its end."""
    to = ["--out", str(tmp_path), "--ranks", "4", "--partition", partition, "--block-mib", str(BLOCK_MIB)]
    command = [sys.executable, "-c", MEASURE, "checkpoint", "reshard", str(write_large), *to]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(done.stdout.rpartition("VmHWM:")[2].split()[0]) * 1024
    bound = 2 * BLOCK_MIB * 2**20 + 64 * 2**20
    assert bound < ROWS * COLUMNS * 4 * 2 / 3, "else it says nothing"
    assert peak < bound
    print(f"peak {peak / 2**20:.0f} MiB, row block {BLOCK_MIB} MiB")


@pytest.fixture(scope="module")
def write_large(write_tensors: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 2**20 x 32 in four shards by rows."""
    table = torch.arange(ROWS * COLUMNS, dtype=torch.float32).view(ROWS, COLUMNS)
    cuts = [ROWS // 4, ROWS // 2, 3 * ROWS // 4]
    return write_tensors({TABLE: table}, cuts, root=tmp_path_factory.mktemp("large"))

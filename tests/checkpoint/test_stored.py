"""Tensors read from files piece by piece are those that were written, and a pickle that does more is refused."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata

from ultramem_megatron.checkpoint.stored import Chunk, ChunkReader, Record, read_stored
from ultramem_megatron.checkpoint.torch_pickle import with_state
from ultramem_megatron.errors import CheckpointError

WriteModel = Callable[..., Path]


def test_rows_are_those_that_torch_reads(write_model: WriteModel) -> None:
    folder = write_model(row_cuts=(12, 20), column_cuts=(5,))
    tensors = read_stored(folder).tensors.values()
    expected = {tensor.name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype)) for tensor in tensors}
    dcp.load(expected, checkpoint_id=folder, no_dist=True)
    for tensor in tensors:
        assert tensor.is_whole
        whole = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
        for chunk in tensor.chunks:
            reader = ChunkReader(chunk, tensor.dtype)
            for row in range(reader.rows):
                start = [place + row * (axis == reader.axis) for axis, place in enumerate(chunk.offset)]
                part = torch.from_numpy(reader.read(row, row + 1)).view(whole.dtype)
                whole[tuple(slice(a, a + size) for a, size in zip(start, part.shape, strict=True))] = part
        assert torch.equal(whole, expected[tensor.name])


def test_sizes_and_kinds(write_model: WriteModel) -> None:
    stored = read_stored(write_model(row_cuts=(12,)))
    table = stored.tensors["memory.layers.0.table.weight"]
    assert (table.num_bytes, len(table.chunks), table.is_table) == (37 * 12 * 4, 2, True)
    assert [name for name, tensor in stored.tensors.items() if tensor.is_table] == [table.name, *MOMENTS]
    assert list(stored.objects) == ["layer._extra_state/shard_0_1"]


MOMENTS = ["optimizer.state.exp_avg.memory.layers.0.table.weight"]


@pytest.mark.parametrize("by", ["name", "value"])
def test_enums_of_any_python(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """Up to Python 3.11.3 an enum's member is pickled by its name, later by its value."""
    reduce = {
        "name": lambda member, protocol: (getattr, (type(member), member.name)),
        "value": lambda member, protocol: (type(member), (member.value,)),
    }
    monkeypatch.setattr(metadata._MEM_FORMAT_ENCODING, "__reduce_ex__", reduce[by])
    folder = write_model(row_cuts=(12,))
    assert (b"getattr" in (folder / ".metadata").read_bytes()) == (by == "name")
    assert read_stored(folder).tensors["decoder.norm"].shape == (8,)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/harm",)


def test_a_list_that_runs_code_is_refused(write_model: WriteModel) -> None:
    folder = write_model()
    (folder / ".metadata").write_bytes(pickle.dumps({"a": Harmful()}))
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read \(it names posix\.system"):
        read_stored(folder)


def test_a_tensor_that_runs_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(it names posix\.system"):
        ChunkReader(record_of(tmp_path, Harmful(), (2,)), "float32")


@pytest.mark.parametrize("damage", [b"", b"\x80", b"garbage", bytes(100)])
def test_a_damaged_list_is_refused(write_model: WriteModel, damage: bytes) -> None:
    folder = write_model()
    (folder / ".metadata").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"step_00000005: \.metadata cannot be read \(.*\); restore it$"):
        read_stored(folder)


def test_what_a_list_says_must_be_in_the_record(tmp_path: Path) -> None:
    tensor = torch.randn(4, 6)
    reader = ChunkReader(record_of(tmp_path, tensor, (4, 6)), "float32")
    np.testing.assert_array_equal(reader.read(1, 3).view(np.float32), tensor[1:3].numpy())
    view = tensor[1:]
    reader = ChunkReader(record_of(tmp_path, view, (3, 6)), "float32")
    np.testing.assert_array_equal(reader.read(0, 3).view(np.float32), view.numpy())
    with pytest.raises(CheckpointError, match=r"its shape is \(4, 6\), not \(6, 4\)"):
        ChunkReader(record_of(tmp_path, tensor, (6, 4)), "float32")
    with pytest.raises(CheckpointError, match=r"not in row-major order"):
        ChunkReader(record_of(tmp_path, tensor.T, (6, 4)), "float32")
    with pytest.raises(CheckpointError, match=r"compressed or too short"):
        ChunkReader(record_of(tmp_path, tensor, (4, 6)), "float64")


def record_of(folder: Path, content: object, sizes: tuple[int, ...]) -> Chunk:
    """Something saved behind other bytes of a file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (folder / "file").write_bytes(b"before" + buffer.getvalue() + b"after")
    record = Record(
        folder / "file", len(b"before"), len(buffer.getvalue()), info=with_state("torch", "_StorageInfo", {})
    )
    return Chunk((0,) * len(sizes), sizes, record)

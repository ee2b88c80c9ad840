"""Checkpoint folders without a model in them: some files, and a manifest that lists them."""

import io
import json
import pickle
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ultramem_megatron.checkpoint import store
from ultramem_megatron.checkpoint.digest import join_pieces
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.tensor_digest import digest_piece
from ultramem_megatron.config.load import parse_override, resolve, to_plain

WriteCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    """``make_manifest(step, *overrides)``: of a small UltraMem model."""

    def make(step: int, *overrides: str) -> Manifest:
        base = {"memory": {"variant": "ultramem", "spans": "1:2"}}
        return Manifest(
            step=step,
            consumed_samples=step * 4,
            consumed_tokens=step * 128,
            data_fingerprint="some-data",
            world_size=2,
            plan={},
            plan_hash="0",
            config=to_plain(resolve([("base", base), *map(parse_override, overrides)])),
            versions={"torch": "2"},
            files={},
        )

    return make


@pytest.fixture
def write_checkpoint(tmp_path: Path, make_manifest: Callable[..., Manifest]) -> WriteCheckpoint:
    """``write_checkpoint(step, keep=9)``: a finished checkpoint of three files under ``tmp_path``."""

    def write(step: int, keep: int = 9) -> Path:
        folder = store.begin(tmp_path, step)
        (folder / "__0_0.distcp").write_bytes(b"weights" * step)
        (folder / "__1_0.distcp").write_bytes(b"moments" * step)
        (folder / "inner").mkdir()
        (folder / "inner" / ".metadata").write_bytes(b"names")
        return store.finish(tmp_path, folder, make_manifest(step), keep)

    return write


BACKENDS = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


def saved_by_torch(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class StoredModel:
    """Logical tensors, and the way in which they are written: what the ranks of a run would leave behind."""

    def __init__(self, tensors: dict[str, Tensor], row_cuts: Sequence[int], column_cuts: Sequence[int] = ()) -> None:
        """Tables are cut at these rows and columns, everything else is one piece; a file for each row of pieces."""
        self.tensors, self.row_cuts, self.column_cuts = tensors, list(row_cuts), list(column_cuts)
        self.listed: dict[str, Any] = {}
        self.places: dict[MetadataIndex, _StorageInfo] = {}
        self.files: dict[str, io.BytesIO] = {}

    def write(self, root: Path, manifest: Manifest) -> Path:
        folder = store.begin(root, manifest.step)
        for name, tensor in self.tensors.items():
            self._add(name, tensor)
        self._put("__0_0.distcp", MetadataIndex("layer._extra_state/shard_0_1"), saved_by_torch([None]))
        self.listed["layer._extra_state/shard_0_1"] = BytesStorageMetadata()
        for name, content in self.files.items():
            (folder / name).write_bytes(content.getvalue())
        (folder / "common.pt").write_bytes(
            saved_by_torch({"optimizer": {"optimizer": {"param_groups": [{"lr": 1e-3}]}}})
        )
        (folder / "metadata.json").write_text(json.dumps({**BACKENDS, "common_backend": "torch"}))
        (folder / ".metadata").write_bytes(pickle.dumps(Metadata(self.listed, storage_data=self.places)))
        digests = join_pieces(digest_piece(name, t, (0,) * t.dim(), t.shape) for name, t in self.tensors.items())
        return store.finish(root, folder, manifest.model_copy(update={"digests": digests}), keep=9)

    def _add(self, name: str, tensor: Tensor) -> None:
        chunks = []
        is_table = name.endswith(".table.weight")
        for number, rows in enumerate(pairwise([0, *(self.row_cuts if is_table else ()), tensor.shape[0]])):
            for columns in pairwise([0, *(self.column_cuts if is_table else ()), tensor.shape[-1]]):
                piece = tensor[slice(*rows)] if tensor.dim() == 1 else tensor[slice(*rows), ..., slice(*columns)]
                offset = torch.Size([rows[0], *[0] * (tensor.dim() - 2), columns[0]][: tensor.dim()])
                self._put(f"__{number}_0.distcp", MetadataIndex(name, offset), saved_by_torch(piece.clone()))
                chunks.append(ChunkStorageMetadata(offset, piece.shape))
        self.listed[name] = TensorStorageMetadata(TensorProperties.create_from_tensor(tensor), tensor.shape, chunks)

    def _put(self, file: str, index: MetadataIndex, content: bytes) -> None:
        stream = self.files.setdefault(file, io.BytesIO())
        self.places[index] = _StorageInfo(file, stream.tell(), len(content))
        stream.write(content)


TABLE = "memory.layers.0.table.weight"
MOMENT = f"optimizer.state.exp_avg.{TABLE}"


@pytest.fixture(scope="session")
def write_tensors(make_manifest: Callable[..., Manifest]) -> Callable[..., Path]:
    """``write_tensors(tensors, row_cuts, column_cuts, root=...)``: a checkpoint of step 5."""

    def write(
        tensors: dict[str, Tensor], row_cuts: Sequence[int] = (), column_cuts: Sequence[int] = (), *, root: Path
    ) -> Path:
        return StoredModel(tensors, row_cuts, column_cuts).write(root, make_manifest(5))

    return write


@pytest.fixture
def write_model(tmp_path: Path, write_tensors: Callable[..., Path]) -> Callable[..., Path]:
    """``write_model(row_cuts, column_cuts)``: a table of 37 x 12 cut so, its moment in bf16, and two dense tensors."""

    def write(row_cuts: Sequence[int] = (), column_cuts: Sequence[int] = ()) -> Path:
        draw = torch.Generator().manual_seed(0)
        tensors = {
            TABLE: torch.randn(37, 12, generator=draw),
            MOMENT: torch.randn(37, 12, generator=draw).bfloat16(),
            "decoder.layers.weight": torch.randn(3, 5, 7, generator=draw),
            "decoder.norm": torch.randn(8, generator=draw),
        }
        return write_tensors(tensors, row_cuts, column_cuts, root=tmp_path / "checkpoints")

    return write

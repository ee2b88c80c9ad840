"""megatron-core's loading, without what it unpickles: lists and tensors are read as ``verify`` reads them.

torch's reader unpickles ``.metadata``, and its planner what lies in records of bytes, whatever they name. Here the list
is read with names that run nothing (``stored.py``) and made anew; a tensor's record gives its numbers alone; records of
bytes are left unread: they hold nothing for the modules that we use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedObject
from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME, TorchCommonLoadStrategy
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from ultramem_megatron.checkpoint.stored import Chunk, ChunkReader, Record, Stored, StoredTensor, read_stored, reason_of
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.parallel.patching import put


class PlainReader(FileSystemReader):
    """Takes the place of torch's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stored: Stored | None = None
        self._chunks: dict[tuple[str, tuple[int, ...]], Chunk] = {}

    @property
    def stored(self) -> Stored:
        """What lies in the folder; read once."""
        if self._stored is None:
            self._stored = read_stored(Path(self.path))
            tensors = self._stored.tensors.values()
            self._chunks = {(tensor.name, chunk.offset): chunk for tensor in tensors for chunk in tensor.chunks}
        return self._stored

    def read_metadata(self, *arguments: Any, **named: Any) -> Metadata:
        """As torch's, from the plain list."""
        return _as_torch_has_it(self.stored, self.load_id)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what the plan asks for."""
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                raise CheckpointError(f"{item.storage_index.fqn} in {self.path} is no tensor, and is not read")
            self._read(item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, item: ReadItem, planner: LoadPlanner) -> None:
        name, offset = item.storage_index.fqn, tuple(item.storage_index.offset or ())
        part = _part_of(self._chunks[name, offset], self.stored.tensors[name].dtype, item)
        target = planner.resolve_tensor(item).detach()
        target.copy_(part.reshape(target.shape))
        planner.commit_tensor(item, target)


def _part_of(chunk: Chunk, dtype: str, item: ReadItem) -> Tensor:
    """Of a chunk, the rectangle that an item asks for; of the file, no other rows are read."""
    reader, starts, sizes = ChunkReader(chunk, dtype), tuple(item.storage_offsets), tuple(item.lengths)
    rows = (starts[reader.axis], sizes[reader.axis]) if sizes else (0, 1)
    part = torch.from_numpy(reader.read(rows[0], rows[0] + rows[1])).view(getattr(torch, dtype))
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if axis != reader.axis:
            part = part.narrow(axis, start, size)
    return part


def _as_torch_has_it(stored: Stored, load_id: str) -> Metadata:
    listed: dict[str, TensorStorageMetadata | BytesStorageMetadata] = dict.fromkeys(
        stored.objects, BytesStorageMetadata()
    )
    listed |= {name: _listed(tensor) for name, tensor in stored.tensors.items()}
    places = {MetadataIndex(name): _place(record) for name, record in stored.objects.items()}
    for tensor in stored.tensors.values():
        for number, chunk in enumerate(tensor.chunks):
            places[MetadataIndex(tensor.name, torch.Size(chunk.offset), number)] = _place(chunk.record)
    return Metadata(listed, storage_data=places, storage_meta=StorageMeta(load_id=load_id))


def _listed(tensor: StoredTensor) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(chunk.offset), torch.Size(chunk.sizes)) for chunk in tensor.chunks]
    properties = TensorProperties(dtype=getattr(torch, tensor.dtype))
    return TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)


def _place(record: Record) -> _StorageInfo:
    return _StorageInfo(record.file.name, record.start, record.length)


class PlainCommon(TorchCommonLoadStrategy):
    """``common.pt`` by the unpickler of torch that builds tensors and plain objects alone, and of it what is asked for.

    What a file says in the place of a tensor of the run, or of another kind, would fail deep inside megatron-core.
    """

    def __init__(self, wanted: dict[str, Any]) -> None:
        """
        Args:
            wanted: The state that is to be filled.
        """
        self.wanted = wanted

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        """As megatron-core's, whatever the environment says of ``weights_only``.

        Raises:
            CheckpointError: It holds no settings of this run's optimizer.
        """
        path = Path(checkpoint_dir) / COMMON_STATE_FNAME
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged archive does
            raise CheckpointError(f"{path.name} cannot be read ({reason_of(error)})") from None
        if "optimizer" not in self.wanted:
            return {}
        try:
            return {"optimizer": _settings(self.wanted["optimizer"], content["optimizer"])}
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path.name} holds no settings of this run's optimizer ({error!r})") from None


def _settings(wanted: dict[Any, Any], found: dict[Any, Any]) -> dict[Any, Any]:
    """Of each part of the optimizer, if there are several, else of the whole."""
    if "optimizer" not in wanted:
        return {part: _settings(wanted[part], found[part]) for part in wanted}
    before, groups = wanted["optimizer"]["param_groups"], found["optimizer"]["param_groups"]
    for ours, theirs in zip(before, groups, strict=False):
        for name in ours.keys() & theirs.keys():
            if _is_number(ours[name]) and not _is_number(theirs[name]):
                raise TypeError(f"{name} is no number")
    others = {name: found[name] for name in wanted.keys() - {"optimizer", "param_state"} if name in found}
    return {"optimizer": {"param_groups": [dict(group) for group in groups]}, **others}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Tensor)


def without_objects(state: dict[str, Any]) -> dict[str, Any]:
    """A sharded state in which what is no tensor stays what this run has there, instead of being loaded."""
    plain: dict[str, Any] = dict_list_map_outplace(
        lambda value: LocalNonpersistentObject(value.data) if isinstance(value, ShardedObject) else value, state
    )
    return plain


@contextmanager
def plain_reader() -> Iterator[None]:
    """Inside, megatron-core's strategy reads with ``PlainReader``; it has no argument for that."""
    undo = put(torch_strategy, "_get_filesystem_reader", lambda folder, cache_metadata=False: PlainReader(Path(folder)))
    try:
        yield
    finally:
        undo()

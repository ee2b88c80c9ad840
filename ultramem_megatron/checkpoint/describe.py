"""What a checkpoint is, from its manifest and its list of tensors; no tensor is read."""

from pathlib import Path
from typing import Any

from ultramem_megatron.checkpoint.manifest import read_manifest
from ultramem_megatron.checkpoint.set_aside import describe_mark, is_set_aside
from ultramem_megatron.checkpoint.store import checkpoint_folders
from ultramem_megatron.checkpoint.stored import TABLE_SUFFIX, StoredTensor, read_stored

OPTIMIZER = "optimizer."


def describe(folder: Path) -> dict[str, Any]:
    """Plain facts, as ``ultramem checkpoint info --json`` prints them.

    Raises:
        CheckpointError: The folder is no checkpoint, or an incomplete one.
    """
    manifest = read_manifest(folder)
    tensors = read_stored(folder).tensors.values()
    weights = [tensor for tensor in tensors if not tensor.name.startswith(OPTIMIZER)]
    tables = [tensor for tensor in weights if tensor.is_table]
    dense = [tensor for tensor in weights if not tensor.is_table]
    placements = manifest.plan.get("placements", [])
    return {
        "folder": str(folder),
        **{name: getattr(manifest, name) for name in ("step", "consumed_samples", "consumed_tokens", "world_size")},
        "plan": {"hash": manifest.plan_hash, "tables": sorted({_share(placement) for placement in placements})},
        "data_fingerprint": manifest.data_fingerprint,
        "data": manifest.data.model_dump() if manifest.data else None,
        "versions": manifest.versions,
        "files": len(manifest.files) + 1,
        "bytes": sum(manifest.files.values()),
        "tables": [_table(table, [t for t in tensors if t.name.endswith(f".{table.name}")]) for table in tables],
        "dense": {"tensors": len(dense), "bytes": sum(tensor.num_bytes for tensor in dense)},
        "optimizer_bytes": sum(tensor.num_bytes for tensor in tensors if tensor.name.startswith(OPTIMIZER)),
        "verifiable": bool(manifest.digests),
        "set_aside": [describe_mark(one) for one in checkpoint_folders(folder.parent) if is_set_aside(one)],
    }


def _share(placement: dict[str, Any]) -> str:
    return f"{placement['partition']} over {placement['parallel_size']}"


def _table(table: StoredTensor, states: list[StoredTensor]) -> dict[str, Any]:
    return {
        "name": table.name.removesuffix(TABLE_SUFFIX),
        "rows": table.shape[0],
        "columns": table.shape[1],
        "dtype": table.dtype,
        "bytes": table.num_bytes,
        "optimizer_bytes": sum(state.num_bytes for state in states),
        "pieces": len(table.chunks),
        "files": len({chunk.record.file for chunk in table.chunks}),
    }

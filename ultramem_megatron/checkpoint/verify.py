"""A checkpoint read through on one process: every file, every element."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ultramem_megatron.checkpoint.digest import digest_bits, tensor_digest
from ultramem_megatron.checkpoint.integrity import changed_files
from ultramem_megatron.checkpoint.manifest import Manifest, TensorDigest, read_manifest
from ultramem_megatron.checkpoint.stored import ChunkReader, StoredTensor, item_bytes, read_stored
from ultramem_megatron.errors import CheckpointError

BLOCK_BYTES = 16 * 2**20
"""Read at a time."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look at every byte found."""

    files: int
    """Compared with what was written."""
    tensors: int
    """Likewise."""
    damage: list[str]
    """What is wrong, file by file and tensor by tensor; empty if all is well."""


def verify(folder: Path) -> Verdict:
    """Read every file and every tensor, and compare them with what the manifest says was written.

    A checkpoint from before there were hashes and digests is looked at as far as possible: files by their sizes,
    tensors by whether all of their parts are there.

    Raises:
        CheckpointError: A file is missing or has another size, or there is no manifest.
    """
    manifest = read_manifest(folder)
    damage = [f"{name} has changed since it was written" for name in changed_files(folder, manifest, manifest.sha256)]
    try:
        tensors = read_stored(folder).tensors
    except CheckpointError as error:
        return Verdict(len(manifest.sha256), 0, [*damage, str(error)])
    damage += [f"{name} is in no file" for name in sorted(set(manifest.digests) - set(tensors))]
    for tensor in tensors.values():
        damage += _look_at(tensor, manifest)
    return Verdict(len(manifest.sha256), len(manifest.digests), damage)


def _look_at(tensor: StoredTensor, manifest: Manifest) -> Iterator[str]:
    if not tensor.is_whole:
        yield f"parts of {tensor.name} are in no file"
        return
    saved = manifest.digests.get(tensor.name)
    if saved is None:
        if manifest.digests:
            yield f"{tensor.name} is in a file, but not in the manifest"
        return
    try:
        found = digest_of(tensor)
    except CheckpointError as error:
        yield f"{tensor.name}: {error}"
        return
    if found != saved:
        yield f"the content of {tensor.name} is not what was saved (digest {found.digest}, saved {saved.digest})"


def digest_of(tensor: StoredTensor) -> TensorDigest:
    """Of a tensor as its files have it, read in blocks."""
    total = 0
    for chunk in tensor.chunks:
        reader = ChunkReader(chunk, tensor.dtype)
        step = max(1, BLOCK_BYTES // max(1, reader.row_elements * item_bytes(tensor.dtype)))
        for start in range(0, reader.rows, step):
            part = reader.read(start, min(start + step, reader.rows))
            offset = tuple(place + start * (axis == reader.axis) for axis, place in enumerate(chunk.offset))
            total += digest_bits(tensor.name, part, offset, tensor.shape)
    return tensor_digest(tensor.shape, tensor.dtype, total)

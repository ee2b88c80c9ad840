"""A checkpoint read through on one process: every file, every element."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultramem_megatron.checkpoint.digest import Bits, digest_bits, tensor_digest
from ultramem_megatron.checkpoint.integrity import changed_files
from ultramem_megatron.checkpoint.loadable import why_not_loadable
from ultramem_megatron.checkpoint.manifest import Manifest, TensorDigest, read_manifest
from ultramem_megatron.checkpoint.stored import ChunkReader, StoredTensor, item_bytes, read_stored
from ultramem_megatron.errors import CheckpointError

MASTER = "optimizer.state.param."
"""What the optimizer's fp32 copy of a weight is called, before the weight's name."""

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
    damage += why_not_loadable(folder, manifest)
    try:
        tensors = read_stored(folder).tensors
    except CheckpointError:  # which is among the reasons
        return Verdict(len(manifest.sha256), 0, damage)
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
    weight = tensor.name.removeprefix(MASTER) if tensor.name.startswith(MASTER) else ""
    try:
        found, rounded = digest_of(tensor), _digest_as_weight(tensor, weight, manifest)
    except CheckpointError as error:
        yield f"{tensor.name}: {error}"
        return
    if found != saved:
        yield f"the content of {tensor.name} is not what was saved (digest {found.digest}, saved {saved.digest})"
    elif rounded is not None and rounded != manifest.digests[weight]:
        # a start would put them into the place of the weights, and find the weights changed
        yield f"the weights {weight} are not those that the optimizer keeps of them: its state was lost in the save"


def digest_of(tensor: StoredTensor) -> TensorDigest:
    """Of a tensor as its files have it, read in blocks."""
    return _digest(tensor, tensor.name, tensor.dtype, lambda bits: bits)


def _digest_as_weight(tensor: StoredTensor, weight: str, manifest: Manifest) -> TensorDigest | None:
    """What ``tensor``, fp32 master weights, gives when rounded to the weights; None if it is none of such."""
    saved = manifest.digests.get(weight)
    if saved is None or tensor.dtype != "float32" or saved.dtype not in _ROUNDED:
        return None
    return _digest(tensor, weight, saved.dtype, _ROUNDED[saved.dtype])


def _round_to_bfloat16(bits: Bits) -> Bits:
    """To the nearest, ties to even, as torch does; what is no number may come out as another one."""
    return ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


_ROUNDED: dict[str, Callable[[Bits], Bits]] = {"float32": lambda bits: bits, "bfloat16": _round_to_bfloat16}
"""From the bits of fp32."""


def _digest(tensor: StoredTensor, name: str, dtype: str, convert: Callable[[Bits], Bits]) -> TensorDigest:
    total = 0
    for chunk in tensor.chunks:
        reader = ChunkReader(chunk, tensor.dtype)
        step = max(1, BLOCK_BYTES // max(1, reader.row_elements * item_bytes(tensor.dtype)))
        for start in range(0, reader.rows, step):
            part = convert(reader.read(start, min(start + step, reader.rows)))
            offset = tuple(place + start * (axis == reader.axis) for axis, place in enumerate(chunk.offset))
            total += digest_bits(name, part, offset, tensor.shape)
    return tensor_digest(tensor.shape, dtype, total)

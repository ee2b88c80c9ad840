"""Digests of logical tensors that do not depend on how they are cut.

The digest of a tensor is the sum, modulo 2**64, of one number for each element: a bijective mix of the tensor's name,
the element's place in the whole tensor, and its bits. A sum can be taken over any rectangles in any order, so ranks,
partitions and row blocks each add their part.

A change of one element always changes the digest; any other change that knows nothing of the mix goes unnoticed with
probability 2**-64. That finds corruption and shards that went to the wrong place. It is no protection from someone who
means harm: who can write the checkpoint can write its manifest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ultramem_megatron.checkpoint.manifest import TensorDigest
from ultramem_megatron.model.counter_random import GOLDEN, scramble, stream_key

CPU_BLOCK_ELEMENTS = 1 << 16
"""Mixed at a time: the int64 temporaries stay in the cache."""

DEVICE_BLOCK_ELEMENTS = 1 << 22
"""On an accelerator, where a block costs some 20 launches; 100 MiB of temporaries."""

_MODULUS = 1 << 64
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest_part(name: str, part: Tensor, offset: Sequence[int], shape: Sequence[int]) -> int:
    """What a rectangle of a tensor adds to the tensor's digest, in [0, 2**64).

    Args:
        name: Of the logical tensor.
        part: The rectangle; leading dimensions of size 1 may be missing.
        offset: Where it begins in the logical tensor.
        shape: Of the logical tensor.
    """
    part = part.detach().reshape((1,) * (len(shape) - part.dim()) + tuple(part.shape))
    return _sum_blocks(stream_key(0, name), part, tuple(offset), tuple(shape))


def tensor_digest(shape: Sequence[int], dtype: torch.dtype, total: int) -> TensorDigest:
    """As the manifest has it; ``total`` is the sum of the parts."""
    return TensorDigest(shape=tuple(shape), dtype=str(dtype).removeprefix("torch."), digest=f"{total % _MODULUS:016x}")


@dataclass(frozen=True, slots=True)
class Piece:
    """What one rectangle says of the tensor it is of; small enough to send between ranks."""

    name: str
    shape: tuple[int, ...]
    """Of the whole."""
    dtype: torch.dtype
    part: int
    """What the rectangle adds to the digest."""


def digest_piece(name: str, part: Tensor, offset: Sequence[int], shape: Sequence[int]) -> Piece:
    """Likewise, with all that is needed to join it with others."""
    return Piece(name, tuple(shape), part.dtype, digest_part(name, part, offset, shape))


def join_pieces(pieces: Iterable[Piece]) -> dict[str, TensorDigest]:
    """The digest of every tensor, by name, from pieces that cover each once."""
    totals: dict[str, int] = {}
    kinds: dict[str, Piece] = {}
    for piece in pieces:
        totals[piece.name] = totals.get(piece.name, 0) + piece.part
        kinds[piece.name] = piece
    return {name: tensor_digest(kinds[name].shape, kinds[name].dtype, totals[name]) for name in sorted(totals)}


def _sum_blocks(key: int, part: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> int:
    if part.numel() <= (CPU_BLOCK_ELEMENTS if part.is_cpu else DEVICE_BLOCK_ELEMENTS):
        return _sum_block(key, part, offset, shape)
    axis = max(range(part.dim()), key=lambda axis: part.shape[axis])
    half = part.shape[axis] // 2
    second = tuple(place + half * (a == axis) for a, place in enumerate(offset))
    return (
        _sum_blocks(key, part.narrow(axis, 0, half), offset, shape)
        + _sum_blocks(key, part.narrow(axis, half, part.shape[axis] - half), second, shape)
    ) % _MODULUS


def _sum_block(key: int, part: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> int:
    if not part.numel():
        return 0
    # the row-major index in the whole, times GOLDEN: linear, so it is built axis by axis, the small ones first
    z = torch.full((1,) * part.dim(), key, dtype=torch.int64, device=part.device)
    stride = 1
    for axis in reversed(range(part.dim())):
        places = torch.arange(offset[axis], offset[axis] + part.shape[axis], device=part.device)
        z = z + (places * _wrap(stride * GOLDEN)).view(-1, *[1] * (part.dim() - 1 - axis))
        stride *= shape[axis]
    bits = part.contiguous().view(_BITS[part.element_size()])
    return int(scramble(z + bits).sum()) % _MODULUS


def _wrap(number: int) -> int:
    """Into the range of int64, modulo 2**64."""
    return (number + (1 << 63)) % _MODULUS - (1 << 63)

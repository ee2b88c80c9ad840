"""Digests of logical tensors that do not depend on how they are cut.

The digest of a tensor is the sum, modulo 2**64, of one number for each element: a bijective mix of the tensor's name,
the element's place in the whole tensor, and its bits. A sum can be taken over any rectangles in any order, so ranks,
partitions and row blocks each add their part.

A change of one element always changes the digest; any other change that knows nothing of the mix goes unnoticed with
probability 2**-64. That finds corruption and shards that went to the wrong place. It is no protection from someone who
means harm: who can write the checkpoint can write its manifest.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultramem_megatron.checkpoint.manifest import TensorDigest
from ultramem_megatron.model.stream_key import GOLDEN, MIX_1, MIX_2, stream_key

BLOCK_ELEMENTS = 1 << 16
"""Mixed at a time: the 64-bit temporaries stay in the cache."""

MODULUS = 1 << 64
_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}

Bits = NDArray[Any]
"""Elements of any type."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one rectangle says of the tensor it is of; small enough to send between ranks."""

    name: str
    shape: tuple[int, ...]
    """Of the whole."""
    dtype: str
    """As torch calls it, without ``torch.``."""
    part: int
    """What the rectangle adds to the digest, in [0, 2**64)."""
    elements: int
    """Of the rectangle."""


def digest_bits(name: str, bits: Bits, offset: Sequence[int], shape: Sequence[int]) -> int:
    """What a rectangle of a tensor adds to the tensor's digest, in [0, 2**64).

    Args:
        name: Of the logical tensor.
        bits: The rectangle, in any type of the elements' size; leading dimensions of size 1 may be missing.
        offset: Where it begins in the logical tensor.
        shape: Of the logical tensor.
    """
    if not shape:
        bits, offset, shape = bits.reshape(1), (0,), (1,)
    bits = bits.reshape((1,) * (len(shape) - bits.ndim) + bits.shape)
    return _sum_blocks(stream_key(0, name), bits.view(_SIGNED[bits.itemsize]), tuple(offset), tuple(shape))


def tensor_digest(shape: Sequence[int], dtype: str, total: int) -> TensorDigest:
    """As the manifest has it; ``total`` is the sum of the parts."""
    return TensorDigest(shape=tuple(shape), dtype=dtype, digest=f"{total % MODULUS:016x}")


def join_pieces(pieces: Iterable[Piece]) -> dict[str, TensorDigest]:
    """The digest of every tensor, by name, from pieces that cover each once."""
    totals: dict[str, int] = {}
    kinds: dict[str, Piece] = {}
    for piece in pieces:
        totals[piece.name] = totals.get(piece.name, 0) + piece.part
        kinds[piece.name] = piece
    return {name: tensor_digest(kinds[name].shape, kinds[name].dtype, totals[name]) for name in sorted(totals)}


def incomplete_tensors(pieces: Iterable[Piece]) -> list[str]:
    """Names of tensors whose pieces have fewer or more elements than they."""
    elements: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for piece in pieces:
        elements[piece.name] = elements.get(piece.name, 0) + piece.elements
        wanted[piece.name] = math.prod(piece.shape)
    return sorted(name for name, found in elements.items() if found != wanted[name])


def _sum_blocks(key: int, bits: Bits, offset: tuple[int, ...], shape: tuple[int, ...]) -> int:
    if bits.size <= BLOCK_ELEMENTS:
        return _sum_block(key, bits, offset, shape)
    axis = max(range(bits.ndim), key=lambda axis: bits.shape[axis])
    first, second = np.array_split(bits, 2, axis)
    behind = tuple(place + first.shape[axis] * (a == axis) for a, place in enumerate(offset))
    return (_sum_blocks(key, first, offset, shape) + _sum_blocks(key, second, behind, shape)) % MODULUS


def _sum_block(key: int, bits: Bits, offset: tuple[int, ...], shape: tuple[int, ...]) -> int:
    if not bits.size:
        return 0
    # the row-major index in the whole, times GOLDEN: linear, so it is built axis by axis, the small ones first
    z = np.full((1,) * bits.ndim, key, np.uint64)
    stride = 1
    for axis in reversed(range(bits.ndim)):
        places = np.arange(offset[axis], offset[axis] + bits.shape[axis], dtype=np.uint64)
        z = z + (places * np.uint64(stride * GOLDEN % MODULUS)).reshape(-1, *[1] * (bits.ndim - 1 - axis))
        stride *= shape[axis]
    z += bits.astype(np.int64).view(np.uint64)  # with their sign, as torch widens them
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return int(z.sum(dtype=np.uint64))

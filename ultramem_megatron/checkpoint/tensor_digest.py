"""Digests (``digest.py``) of tensors in memory: by numpy on the host, by torch where an accelerator holds them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ultramem_megatron.checkpoint.digest import MODULUS, Piece, digest_bits
from ultramem_megatron.model.counter_random import GOLDEN, scramble
from ultramem_megatron.model.stream_key import stream_key

DEVICE_BLOCK_ELEMENTS = 1 << 22
"""A block costs some 20 launches; 100 MiB of temporaries."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest_part(name: str, part: Tensor, offset: Sequence[int], shape: Sequence[int]) -> int:
    """As ``digest_bits``."""
    bits = part.detach().view(_BITS[part.element_size()])
    if bits.is_cpu:
        return digest_bits(name, bits.numpy(), offset, shape)
    bits = bits.reshape((1,) * (len(shape) - bits.dim()) + tuple(bits.shape))
    return _sum_blocks(stream_key(0, name), bits, tuple(offset), tuple(shape))


def digest_piece(name: str, part: Tensor, offset: Sequence[int], shape: Sequence[int]) -> Piece:
    """Likewise, with all that is needed to join it with others."""
    dtype = str(part.dtype).removeprefix("torch.")
    return Piece(name, tuple(shape), dtype, digest_part(name, part, offset, shape), part.numel())


def _sum_blocks(key: int, bits: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> int:
    if bits.numel() <= DEVICE_BLOCK_ELEMENTS:
        return _sum_block(key, bits, offset, shape)
    axis = max(range(bits.dim()), key=lambda axis: bits.shape[axis])
    half = bits.shape[axis] // 2
    second = tuple(place + half * (a == axis) for a, place in enumerate(offset))
    return (
        _sum_blocks(key, bits.narrow(axis, 0, half), offset, shape)
        + _sum_blocks(key, bits.narrow(axis, half, bits.shape[axis] - half), second, shape)
    ) % MODULUS


def _sum_block(key: int, bits: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> int:
    if not bits.numel():
        return 0
    z = torch.full((1,) * bits.dim(), key, dtype=torch.int64, device=bits.device)
    stride = 1
    for axis in reversed(range(bits.dim())):  # as in digest.py
        places = torch.arange(offset[axis], offset[axis] + bits.shape[axis], device=bits.device)
        z = z + (places * _wrap(stride * GOLDEN)).view(-1, *[1] * (bits.dim() - 1 - axis))
        stride *= shape[axis]
    return int(scramble(z + bits).sum()) % MODULUS


def _wrap(number: int) -> int:
    """Into the range of int64, modulo 2**64."""
    return (number + (1 << 63)) % MODULUS - (1 << 63)

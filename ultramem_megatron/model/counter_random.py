"""Random numbers as functions of (key, index): any shard of a tensor gets the numbers of its place in the whole."""

import math

import torch
from torch import Tensor

from ultramem_megatron.model import stream_key

# SplitMix64 in int64, whose products wrap like unsigned ones
GOLDEN = stream_key.GOLDEN - 2**64
MIX_1 = stream_key.MIX_1 - 2**64
MIX_2 = stream_key.MIX_2 - 2**64


def uniform_at(key: int, index: Tensor) -> Tensor:
    """Uniform on (0, 1), fp64, for int64 ``index`` of any shape."""
    return ((_mix(key, index) >> 11 & (2**53 - 1)).double() + 0.5) / 2**53


def normal_at(key: int, index: Tensor) -> Tensor:
    """Standard normal, fp64, by Box-Muller from the two halves of one 64-bit number; tails end at 6.7 sigma."""
    bits = _mix(key, index)
    radius = ((bits >> 32 & (2**32 - 1)).double() + 0.5) / 2**32
    angle = (bits & (2**32 - 1)).double() / 2**32
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def scramble(z: Tensor) -> Tensor:
    """A bijection of int64 in which every bit of the result depends on every bit of ``z``."""
    z = (z ^ _shift_right(z, 30)) * MIX_1
    z = (z ^ _shift_right(z, 27)) * MIX_2
    return z ^ _shift_right(z, 31)


def _mix(key: int, index: Tensor) -> Tensor:
    return scramble(index.to(torch.int64) * GOLDEN + key)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch's >> keeps the sign
    return z >> bits & (2 ** (64 - bits) - 1)

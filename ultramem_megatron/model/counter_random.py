"""Random numbers as functions of (key, index): any shard of a tensor gets the numbers of its place in the whole."""

import hashlib
import math

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014): the i-th output of a stream is a bijective mix of key + i * GOLDEN. Written in
# int64, whose products wrap like unsigned ones.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64


def stream_key(seed: int, name: str) -> int:
    """A 63-bit key for the tensor ``name`` of a run with ``seed``."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


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

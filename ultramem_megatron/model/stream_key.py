"""What names a stream of numbers. No torch: checkpoints are read without it."""

import hashlib

# SplitMix64 (Steele, Lea, Flood 2014): the i-th output of a stream is a bijective mix of key + i * GOLDEN
GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def stream_key(seed: int, name: str) -> int:
    """A 63-bit key for the tensor ``name`` of a run with ``seed``."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1

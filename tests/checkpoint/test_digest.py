"""A digest is of the logical tensor: any way of cutting it gives the same, any change another."""

import hashlib
import struct
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ultramem_megatron.checkpoint import digest, tensor_digest
from ultramem_megatron.checkpoint.tensor_digest import digest_part


def table(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(37, 19, generator=torch.Generator().manual_seed(0)).to(dtype)


def whole(tensor: Tensor, name: str = "table") -> str:
    return hex_of(tensor, digest_part(name, tensor, (0,) * tensor.dim(), tensor.shape))


def hex_of(tensor: Tensor, total: int) -> str:
    return digest.tensor_digest(tensor.shape, str(tensor.dtype), total).digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
def test_any_cut_gives_the_same(dtype: torch.dtype) -> None:
    tensor = table(dtype)
    shape = tuple(tensor.shape)
    for rows in ([0, 37], [0, 12, 24, 37], [0, 5, 5, 37]):
        for columns in ([0, 19], [0, 6, 12, 19], [0, 1, 19]):
            total = sum(
                digest_part("table", tensor[a:b, c:d], (a, c), shape)
                for a, b in pairwise(rows)
                for c, d in pairwise(columns)
            )
            assert hex_of(tensor, total) == whole(tensor)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole(table())
    monkeypatch.setattr(digest, "BLOCK_ELEMENTS", 7)
    assert whole(table()) == before


def test_a_layer_of_a_stack_is_a_part_of_it() -> None:
    stack = table().view(1, 37, 19).repeat(3, 1, 1) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    total = sum(digest_part("table", stack[i], (i, 0, 0), stack.shape) for i in range(3))
    assert hex_of(stack, total) == whole(stack)


def test_every_bit_counts() -> None:
    tensor = table()
    seen = {whole(tensor)}
    for place in (0, 100, 702):
        for bit in range(32):
            bits = tensor.clone().view(torch.int32)
            bits.view(-1)[place] ^= -(1 << 31) if bit == 31 else 1 << bit
            seen.add(whole(bits.view(torch.float32)))
    assert len(seen) == 1 + 3 * 32


def test_place_name_and_pairs_of_changes_count() -> None:
    tensor = table()
    before = whole(tensor)
    swapped, negated = tensor.clone(), tensor.clone()
    swapped[[0, 1]] = tensor[[1, 0]]
    negated[3:5] *= -1  # the top bit of an even number of elements: what a plain weighted sum could miss
    others = {whole(swapped), whole(negated), whole(tensor, "other"), whole(tensor.T)}
    assert len(others) == 4
    assert before not in others


def test_it_is_the_sum_of_mixed_elements() -> None:
    """Digests lie in manifests: they may not change with the code. Here they are worked out element by element."""
    tensor = table()[:3, :4]
    key = int.from_bytes(hashlib.sha256(b"0/table").digest()[:8], "little") >> 1
    total = 0
    for place, number in enumerate(tensor.flatten().tolist()):
        bits = struct.unpack("<i", struct.pack("<f", number))[0]
        z = (key + place * 0x9E3779B97F4A7C15 + bits) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        total += z ^ z >> 31
    assert whole(tensor) == f"{total % 2**64:016x}"
    assert whole(torch.empty(0, 4)) == "0" * 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_an_accelerator_finds_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code runs on any device; the host has other code."""
    monkeypatch.setattr(tensor_digest, "DEVICE_BLOCK_ELEMENTS", 100)
    bits = table(dtype).view(tensor_digest._BITS[dtype.itemsize])
    total = tensor_digest._sum_blocks(digest.stream_key(0, "table"), bits, (2, 3), (50, 40))
    assert total == digest_part("table", table(dtype), (2, 3), (50, 40))


def test_a_single_number(recwarn: pytest.WarningsRecorder) -> None:
    assert hex_of(torch.tensor(1.5), digest_part("a", torch.tensor(1.5), (), ())) == whole(torch.tensor([1.5]), "a")
    assert not recwarn.list, "numpy warns of overflow in single numbers"
